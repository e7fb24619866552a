"""From latents of flow matching to pixels, on rank 0: shared by families whose VAE is scaled and shifted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["clean", "halved", "pixels"]


def clean(scheduler: Any, before: torch.Tensor, after: torch.Tensor, step: int) -> torch.Tensor:
    """The clean latents in float32, predicted from those before and after ``step`` (from 0).

    Flow matching follows a velocity from noise to image, so the clean latents are where the line through the latents
    before and after the step reaches sigma = 0.
    """
    step += getattr(scheduler, "begin_index", None) or 0  # when starting from an image, the first ones are skipped
    sigma, next_sigma = (float(scheduler.sigmas[i]) for i in (step, step + 1))
    # In float32: the step is small compared to the latents, and extrapolated far.
    before, after = before.float(), after.float()
    return after + (before - after) * (next_sigma / (next_sigma - sigma)) if next_sigma else after


def halved(latents: torch.Tensor) -> torch.Tensor:
    """Half the height and width of [n, channels, height, width], which makes decoding about four times cheaper."""
    return F.avg_pool2d(latents, 2)


def pixels(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    """Decode latents [n, channels, height, width] to images: uint8 [n, height, width, 3] in the VAE's scale."""
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    decoded = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
    values = pipe.image_processor.postprocess(decoded, output_type="np")
    return np.rint(values * 255).astype(np.uint8)
