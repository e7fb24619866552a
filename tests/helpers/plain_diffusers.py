"""What diffusers alone makes of a request to a tiny model, in one process: the judge of what a service draws.

Nothing here is shared with the service: arguments are written out as a user of diffusers would write them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image

from cache_core import CacheOptions, apply_cache_on_pipe
from cache_core.pipe import cache_reports
from raycache.models.registry import family_of
from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.tiny_models import tiny_folder

__all__ = ["GUIDANCE", "PROMPT", "SEED", "STRENGTH", "Plain", "masked", "plain", "scene"]

PROMPT, SEED, GUIDANCE, STRENGTH = "a red circle", 7, 4.0, 0.7


class Plain(NamedTuple):
    """What became of a request.

    Attributes:
        pixels: uint8, [height, width, 3]; of a video [frames, height, width, 3].
        decisions: per call of a denoiser, in the order of the report: its step, its branch, and for each row whether
            the cache was used and why. Empty without a cache.
    """

    pixels: np.ndarray
    decisions: list[Any]


def scene() -> np.ndarray:
    """A picture to begin with: uint8, [64, 64, 3]."""
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    return np.stack([4 * rows, 4 * columns, 255 - 2 * rows - 2 * columns], axis=-1)


def masked() -> np.ndarray:
    """Where it is to be painted over, the right half: 255, else 0; uint8, [64, 64]."""
    return np.repeat(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None], 64, axis=0)


def plain(name: str, task: str, steps: int, cache: CacheOptions | None = None) -> Plain:
    """``task`` done by the tiny model ``name`` in ``steps`` steps, alone on this process."""
    tiny = TINY_FAMILIES[name]
    family = family_of(tiny.pipeline)
    pipe = getattr(diffusers, family.tasks[task] or tiny.pipeline).from_pretrained(tiny_folder(name))
    pipe.set_progress_bar_config(disable=True)
    if cache is not None:
        options = cache.model_dump()
        apply_cache_on_pipe(pipe, options.pop("type"), **options)
    output = pipe(**_arguments(name, task), num_inference_steps=steps, output_type="np")
    drawn = output.images[0] if hasattr(output, "images") else output.frames[0]
    return Plain(np.rint(np.clip(np.asarray(drawn), 0, 1) * 255).astype(np.uint8), _decisions(pipe))


def _arguments(name: str, task: str) -> dict[str, Any]:
    given = dict(TINY_FAMILIES[name].ask) | {"prompt": PROMPT, "generator": [torch.Generator().manual_seed(SEED)]}
    if name.startswith("flux"):  # which embed their guidance
        given["guidance_scale"] = GUIDANCE
    if task in ("image-to-image", "edit", "inpaint", "image-to-video"):
        given["image"] = Image.fromarray(scene())
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
