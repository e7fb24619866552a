"""A real FluxPipeline on the noise model (2 double and 4 single blocks), and an image from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline

STEPS = 6
DBCACHE = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2, "residual_diff_threshold": 0.3}


def load(folder: Path) -> FluxPipeline:
    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DiffusionPipeline, **arguments: Any) -> torch.Tensor:
    """The latents of one image: the same for the same arguments."""
    settings = {
        "prompt": "a red circle",
        "width": 64,
        "height": 64,
        "num_inference_steps": STEPS,
        "max_sequence_length": 16,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    return pipe(**settings | arguments).images
