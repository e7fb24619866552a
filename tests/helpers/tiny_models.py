"""Tiny models of all families: built once per run, and the request fields for each task."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from diffusers import DiffusionPipeline

from raycache.models.registry import family_of
from raycache.protocol.job import Job, JobInputs
from raycache.testing.tiny_models import TINY_FAMILIES, build_tiny
from tests.helpers.jobs import make_job

#: Families and tasks that take about a second. The others enlarge input images to a megapixel.
CASES = [
    (name, task) for name, tiny in TINY_FAMILIES.items() for task in family_of(tiny.pipeline).tasks if not tiny.slow
]


@functools.cache
def _own() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-models-")


def tiny_folder(name: str) -> Path:
    """Built once a run, where ``tests/unit/conftest.py`` has made a folder for all its processes; else in each."""
    return build_tiny(name, Path(os.environ.get("TINY_MODELS") or _own().name, name))


def load_tiny(folder: Path) -> Any:
    """A new pipeline without progress bars."""
    if (folder / "modular_model_index.json").is_file():
        return load_modular_tiny(folder)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_modular_tiny(folder: Path) -> Any:
    """A modular pipeline, loaded as in diffusers' documentation, that does not rewrite prompts."""
    of = getattr(diffusers, json.loads((folder / "modular_model_index.json").read_text())["_class_name"])
    blocks = getattr(diffusers, of.default_blocks_name)()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipe = of(blocks=blocks, pretrained_model_name_or_path=str(folder))
    pipe.load_components()
    return pipe


@functools.cache
def tiny_pipe(name: str) -> Any:
    """A shared pipeline for tests that do not change it."""
    return load_tiny(tiny_folder(name))


def tiny_job(name: str, task: Any, id: str = "1", seeds: tuple[int, ...] = (7,), steps: int = 2, **fields: Any) -> Job:
    """A small job that uses all inputs of the family: a negative prompt, images, a mask, frames."""
    family = family_of(TINY_FAMILIES[name].pipeline)
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    image = np.stack([4 * rows, 4 * columns, 255 - 2 * rows - 2 * columns], axis=-1)
    inputs = JobInputs(
        task,
        images=(image,) if task in ("image-to-image", "edit", "inpaint", "image-to-video") else (),
        mask=np.where(columns < 32, 0, 255).astype(np.uint8) if task == "inpaint" else None,
        strength=0.7 if task == "image-to-image" else None,
        num_frames=family.frame_step + 1 if family.frame_step else 1,
    )
    usual: dict[str, Any] = {
        "guidance_scale": 4.0,
        "negative_prompt": "grey" if family.negative_prompt else "",
        "true_cfg_scale": 4.0 if family.true_cfg else 1.0,
    }
    return make_job(id, seeds=seeds, steps=steps, inputs=inputs, **usual | fields)


def small_tiles(vae: Any) -> Any:
    """The VAE with tiles of a few latents per side that overlap."""
    side = vae.spatial_compression_ratio if hasattr(vae, "spatial_compression_ratio") else 8
    for name, latents in (("min", 8), ("stride", 6)):
        for each in ("height", "width"):
            if hasattr(vae, f"tile_sample_{name}_{each}"):
                setattr(vae, f"tile_sample_{name}_{each}", latents * side)
                if hasattr(vae, f"tile_latent_{name}_{each}"):
                    setattr(vae, f"tile_latent_{name}_{each}", latents)
    if hasattr(vae, "tile_sample_min_size"):
        vae.tile_sample_min_size, vae.tile_latent_min_size = 8 * side, 8
    return vae
