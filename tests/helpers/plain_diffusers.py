"""The result of a request to a tiny model with diffusers alone, in one process: the reference for the service.

Nothing here is shared with the service: arguments are written as a user of diffusers would write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image

from cache_core import CacheOptions, apply_cache_on_pipe
from cache_core.pipe import cache_reports
from raycache.models.registry import family_of
from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.tiny_models import load_modular_tiny, tiny_folder

__all__ = ["GUIDANCE", "PROMPT", "SEED", "STRENGTH", "Plain", "masked", "plain", "scene"]

PROMPT, SEED, GUIDANCE, STRENGTH = "a red circle", 7, 4.0, 0.7


class Plain(NamedTuple):
    """The result of a request.

    Attributes:
        pixels: uint8, [height, width, 3]; for a video [frames, height, width, 3].
        decisions: per call of a denoiser, in the order of the report: its step, its branch, and for each row whether
            the cache was used and why. Empty without a cache.
    """

    pixels: np.ndarray
    decisions: list[Any]


def scene(width: int = 64) -> np.ndarray:
    """An input image: uint8, [64, width, 3]."""
    rows, columns = np.mgrid[:64, :width].astype(np.uint8)
    return np.stack([4 * rows, 4 * columns, 255 - 2 * rows - 2 * columns], axis=-1)


def masked() -> np.ndarray:
    """A mask: 255 in the right half, which is to be replaced, else 0; uint8, [64, 64]."""
    return np.repeat(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None], 64, axis=0)


def plain(name: str, task: str, steps: int, cache: CacheOptions | None = None, widths: Sequence[int] = (64,)) -> Plain:
    """``task`` by the tiny model ``name`` in ``steps`` steps, in this process alone.

    Args:
        widths: of its input images, if the task has any.
    """
    pipe = _pipe(name, task)
    if cache is not None:
        options = cache.model_dump()
        apply_cache_on_pipe(pipe, options.pop("type"), **options)
    asked = {**_arguments(name, task, widths), "num_inference_steps": steps, "output_type": "np"}
    if hasattr(pipe, "blocks"):  # a modular pipeline, which returns the requested output
        drawn = pipe(**asked, output="images")[0]
    else:
        output = pipe(**asked)
        drawn = output.images[0] if hasattr(output, "images") else output.frames[0]
    colors = np.asarray(drawn)[..., :3]  # Qwen-Image 2.1 has an alpha channel
    return Plain(np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8), _decisions(pipe))


def _pipe(name: str, task: str) -> Any:
    folder, tiny = tiny_folder(name), TINY_FAMILIES[name]
    if (folder / "modular_model_index.json").is_file():
        pipe = load_modular_tiny(folder)  # its blocks choose the task by their inputs
        if hasattr(pipe, "guider"):
            pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=GUIDANCE))
        return pipe
    pipe = getattr(diffusers, family_of(tiny.pipeline).tasks[task] or tiny.pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _arguments(name: str, task: str, widths: Sequence[int]) -> dict[str, Any]:
    given = dict(TINY_FAMILIES[name].ask) | {"prompt": PROMPT, "generator": [torch.Generator().manual_seed(SEED)]}
    if name.startswith("flux") and not name.startswith("flux3"):  # which embed their guidance
        given["guidance_scale"] = GUIDANCE
    if task in ("image-to-image", "edit", "inpaint", "image-to-video"):
        images = [Image.fromarray(scene(width)) for width in widths]
        given["image"] = images if len(images) > 1 else images[0]
    if task == "edit" and name == "qwen-image-2.1":
        given["output_resolution"] = 64  # else a megapixel
    if task == "image-to-image":
        given["strength"] = STRENGTH
    if task == "inpaint":
        given |= {"mask_image": Image.fromarray(masked()), "strength": 1.0}
    return given


def _decisions(pipe: Any) -> list[Any]:
    return [
        [record.step, record.branch, [[image.cached, image.reason] for image in record.images]]
        for report in cache_reports(pipe).values()
        for record in report.steps
    ]
