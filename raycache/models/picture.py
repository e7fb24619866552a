"""From latents to pixels, on rank 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["decode", "preview"]


def decode(pipe: Any, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Pictures of packed latents [n, tokens, channels]: uint8 [n, height, width, 3]."""
    return _pixels(pipe, pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor))


def preview(pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, height: int, width: int) -> np.ndarray:
    """Pictures of half the size of what the latents are becoming, after ``step`` (from 0).

    Flow matching walks along a velocity from noise to picture, so the clean latent is where the line through the
    latents before and after the step meets sigma = 0. Halving it first makes decoding about four times cheaper.
    """
    sigma, next_sigma = (float(pipe.scheduler.sigmas[i]) for i in (step, step + 1))
    # In float32: the step is small beside the latents, and stretched far.
    before, after = before.float(), after.float()
    clean = after + (before - after) * (next_sigma / (next_sigma - sigma)) if next_sigma else after
    return _pixels(pipe, F.avg_pool2d(pipe._unpack_latents(clean, height, width, pipe.vae_scale_factor), 2))


def _pixels(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    values = pipe.image_processor.postprocess(decoded, output_type="np")
    return np.rint(values * 255).astype(np.uint8)
