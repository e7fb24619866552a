"""Generates images with a pipeline of any family, for tools: tuning, judging, measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raycache.models.registry import family_of
from raycache.size import Size

__all__ = ["generate_images"]


def generate_images(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, size: Size) -> np.ndarray:
    """One image for each prompt, all in one batch: uint8 ``[prompts, height, width, 3]``.

    Args:
        pipe: a loaded diffusers pipeline; a cache session may be open on it.
        seeds: one for each prompt, for its noise only.
        steps: denoising steps.
        size: size of each image.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"each prompt needs one seed: got {len(prompts)} prompts, {len(seeds)} seeds")
    with torch.no_grad():
        images: np.ndarray = pipe(
            list(prompts),
            max_sequence_length=family_of(type(pipe).__name__).text_tokens(pipe),
            width=size.width,
            height=size.height,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )[0]
    return (images * 255).round().astype(np.uint8)
