"""Generates images with a pipeline of any family, for tools: tuning, judging, measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raycache.models.arguments import call, parameters_of_call, to_uint8
from raycache.models.registry import family_of
from raycache.size import Size

__all__ = ["generate_images"]


def generate_images(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    size: Size,
    frames: int = 1,
    true_cfg_scale: float = 1.0,
    guidance_scale: float | None = None,
) -> np.ndarray:
    """One image or video for each prompt, all in one batch.

    Args:
        pipe: a loaded diffusers pipeline that needs no input image; a cache may be on it.
        seeds: one for each prompt, for its noise only.
        steps: denoising steps.
        size: size of each image.
        frames: frames of each video, if the pipeline makes videos.
        true_cfg_scale: above 1, each step also calls the transformer for an empty prompt.
        guidance_scale: what the transformer is told; None: the pipeline's default.

    Returns:
        uint8 ``[prompts, height, width, 3]``, or ``[prompts, frames, height, width, 3]`` of videos.

    Raises:
        ValueError: not one seed for each prompt, or true CFG with a pipeline that has none.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"each prompt needs one seed: got {len(prompts)} prompts, {len(seeds)} seeds")
    family, known = family_of(type(pipe).__name__), parameters_of_call(pipe)
    offered: dict[str, Any] = {
        "prompt": list(prompts),
        "max_sequence_length": family.text_tokens(pipe),
        "width": size.width,
        "height": size.height,
        "num_frames": frames,
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
        "output_type": "np",
    }
    if guidance_scale is not None:
        offered["guidance_scale"] = guidance_scale
    if true_cfg_scale > 1:
        if "true_cfg_scale" not in known:
            raise ValueError(f"{type(pipe).__name__} has no true CFG: leave true_cfg_scale at 1")
        offered |= {"true_cfg_scale": true_cfg_scale, "negative_prompt": [""] * len(prompts)}
    with torch.no_grad():
        made = call(pipe, {name: value for name, value in (offered | dict(family.fixed)).items() if name in known})
    return to_uint8(made[0])
