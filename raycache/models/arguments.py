"""A job as named arguments of its pipeline's call, limited to those that the pipeline takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from raycache.models.family import ModelFamily
from raycache.models.modular import call_modular, guide, inputs_of, is_modular, workflow_of
from raycache.protocol.job import Job

__all__ = ["call", "call_arguments", "parameters_of_call", "pipelines_of", "to_uint8"]

#: diffusers' names for the number of rows per prompt.
_ROWS = ("num_images_per_prompt", "num_videos_per_prompt")
#: An empty prompt, for pipelines that guide only with a negative prompt.
_NOTHING = " "


def call_arguments(pipe: Any, family: ModelFamily, job: Job, text_tokens: int) -> dict[str, Any]:
    """Arguments for ``pipe``, of the family, with which ``job`` returns float images.

    Each image has its own generator, on the CPU: its noise depends only on its seed.

    Raises:
        ValueError: the job needs an argument that this pipeline does not take.
    """
    image, inputs = job.images[0], job.inputs
    known, guidance = parameters_of_call(pipe), family.guidance(image.guidance_scale, image.true_cfg_scale)
    if is_modular(pipe):
        guide(pipe, guidance)
    offered: dict[str, Any] = {
        "prompt": job.prompt,
        "guidance_scale": guidance,
        "height": job.size.height,
        "width": job.size.width,
        "num_inference_steps": job.num_inference_steps,
        "max_sequence_length": text_tokens,
        "strength": 1.0,  # else inpainting pipelines would keep some of the masked area
        "generator": [torch.Generator().manual_seed(each.seed) for each in job.images],
        "output_type": "np",
    }
    needed = _needed(job, known)
    if missing := [name for name in needed if name not in known]:
        raise ValueError(f"{type(pipe).__name__} has no {', '.join(missing)}, which a job of {inputs.task} needs")
    if "true_cfg_scale" in known and not _embeds_guidance(pipe):
        del offered["guidance_scale"]  # the pipeline would warn about it each time
    offered |= needed
    rows, images = next((name for name in _ROWS if name in known), None), len(job.images)
    if rows and not family.repeats:
        offered[rows] = images
    elif images > 1:
        offered |= {name: [offered[name]] * images for name in ("prompt", "negative_prompt") if name in offered}
    if images > 1 and inputs.task != "edit" and family.image_by_row:
        # Encoded with that row's generator, so that image k depends only on its seed. Images to edit are not rows.
        offered |= {name: [offered[name]] * images for name in ("image", "mask_image") if name in offered}
    return {name: value for name, value in (offered | dict(family.arguments(job))).items() if name in known}


def _needed(job: Job, known: Collection[str]) -> dict[str, Any]:
    """Arguments that must not be dropped."""
    image, inputs, needed = job.images[0], job.inputs, dict[str, Any]()
    if image.true_cfg_scale > 1 or "true_cfg_scale" in known:
        needed["true_cfg_scale"] = image.true_cfg_scale
    if image.true_cfg_scale > 1:
        needed["negative_prompt"] = image.negative_prompt or _NOTHING
    elif image.negative_prompt:
        needed["negative_prompt"] = image.negative_prompt
    given = [Image.fromarray(each) for each in inputs.images]
    if given:
        needed["image"] = given[0] if len(given) == 1 else given
    if inputs.mask is not None:
        needed["mask_image"] = Image.fromarray(inputs.mask)
    if inputs.strength is not None:
        needed["strength"] = inputs.strength
    if inputs.num_frames > 1:
        needed["num_frames"] = inputs.num_frames
    elif "num_frames" in known:
        needed["num_frames"] = 1
    return needed


def call(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """Everything that ``pipe`` returns for these arguments, as a tuple: images or videos first."""
    return (call_modular(pipe, arguments),) if is_modular(pipe) else pipe(**arguments)


def parameters_of_call(pipe: object) -> Collection[str]:
    """Names of the parameters of the pipeline's call."""
    if is_modular(pipe):
        return inputs_of(pipe)
    pipeline: Any = type(pipe)  # the type checker gives a class the hash of its instances
    return _parameters(pipeline)


@cache
def _parameters(pipeline: Any) -> Collection[str]:
    return inspect.signature(pipeline.__call__).parameters


def _embeds_guidance(pipe: Any) -> bool:
    return bool(pipe.transformer.config.get("guidance_embeds", False))


def pipelines_of(pipe: Any, family: ModelFamily) -> dict[str, Any]:
    """For each task of the family, the loaded pipeline or another one over the same components."""
    import diffusers

    if is_modular(pipe):
        return {task: workflow_of(pipe, name) if name else pipe for task, name in family.tasks.items()}
    made: dict[str, Any] = {type(pipe).__name__: pipe}
    for name in family.tasks.values():
        if name and name not in made:
            made[name] = _other(getattr(diffusers, name), pipe)
    return {task: made.get(name, pipe) for task, name in family.tasks.items()}


def _other(pipeline: Any, pipe: Any) -> Any:
    components = pipe.components | {name: pipe.config[name] for name in pipe.config if not name.startswith("_")}
    takes = inspect.signature(pipeline.__init__).parameters
    made = pipeline(**{name: getattr(pipe, name, value) for name, value in components.items() if name in takes})
    made.set_progress_bar_config(disable=True)
    return made


def to_uint8(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Floats from 0 to 1 as diffusers returns them for ``output_type="np"``: uint8 of the same shape, without alpha."""
    return np.rint(np.clip(np.asarray(values, dtype=np.float32)[..., :3], 0, 1) * 255).astype(np.uint8)
