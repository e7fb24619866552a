"""Tiny real diffusers pipelines with guidance in one batch: every image has a negative and a positive row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch

from tests.helpers.tiny_transformers import build

__all__ = ["GUIDED", "draw_guided"]

_TEXT, _CHANNELS, _STEPS = 6, 16, 8


def draw_guided(name: str, pipe: Any, seeds: Sequence[int], per_prompt: int = 1, **more: Any) -> torch.Tensor:
    """The latents of one image for each seed; ``per_prompt`` neighbours share a prompt."""
    prompts = seeds[::per_prompt]
    words = torch.stack([_noise(100 + seed, _TEXT, _CHANNELS) for seed in prompts])
    against = torch.stack([_noise(200 + seed, _TEXT, _CHANNELS) for seed in prompts])
    arguments = GUIDED[name][1](words, against)
    taken = inspect.signature(type(pipe).__call__).parameters
    arguments["num_videos_per_prompt" if "num_videos_per_prompt" in taken else "num_images_per_prompt"] = per_prompt
    fixed = {"num_inference_steps": _STEPS, "guidance_scale": 3.0, "output_type": "latent", "return_dict": False}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad():
        output = pipe(generator=generators, **(fixed | arguments | more))[0]
    return output


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pipe(kind: str, transformer: str, scheduler: Any, **parts: Any) -> Any:
    cls = getattr(diffusers, kind)
    return _quiet(cls(transformer=build(transformer), scheduler=scheduler, vae=None, **parts))


def _embeds(words: torch.Tensor, against: torch.Tensor) -> dict[str, Any]:
    return {"prompt_embeds": words, "negative_prompt_embeds": against}


def _masks(words: torch.Tensor) -> dict[str, Any]:
    ones = torch.ones(words.shape[:2], dtype=torch.bool)
    return {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}


def _sd3(words: torch.Tensor, against: torch.Tensor) -> dict[str, Any]:
    pooled = {"pooled_prompt_embeds": words[:, 0], "negative_pooled_prompt_embeds": against[:, 0]}
    return _embeds(words, against) | pooled | {"height": 64, "width": 64}


def _z_image(words: torch.Tensor, against: torch.Tensor) -> dict[str, Any]:
    return {"prompt_embeds": list(words), "negative_prompt_embeds": list(against), "height": 64, "width": 64}


#: By pipeline class: how to create it, and its own arguments from the embeddings of the prompt and negative prompt.
GUIDED: dict[str, tuple[Callable[[], Any], Callable[[torch.Tensor, torch.Tensor], dict[str, Any]]]] = {
    "StableDiffusion3Pipeline": (
        lambda: _pipe(
            "StableDiffusion3Pipeline", "SD3Transformer2DModel", diffusers.FlowMatchEulerDiscreteScheduler(),
            **dict.fromkeys(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
        ),
        _sd3,
    ),
    "ZImagePipeline": (
        lambda: _pipe(
            "ZImagePipeline", "ZImageTransformer2DModel", diffusers.FlowMatchEulerDiscreteScheduler(),
            text_encoder=None, tokenizer=None,
        ),
        _z_image,
    ),
    "LTXPipeline": (
        lambda: _pipe(
            "LTXPipeline", "LTXVideoTransformer3DModel", diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True
            ),
            text_encoder=None, tokenizer=None,
        ),
        lambda words, against: _embeds(words, against) | _masks(words) | {"height": 64, "width": 64, "num_frames": 9},
    ),
    "CogVideoXPipeline": (
        lambda: _pipe(
            "CogVideoXPipeline", "CogVideoXTransformer3DModel", diffusers.CogVideoXDDIMScheduler(),
            text_encoder=None, tokenizer=None,
        ),
        lambda words, against: _embeds(words, against) | {"height": 64, "width": 64, "num_frames": 5},
    ),
    "MochiPipeline": (
        lambda: _pipe(
            "MochiPipeline", "MochiTransformer3DModel", diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            text_encoder=None, tokenizer=None,
        ),
        lambda words, against: _embeds(words, against) | _masks(words) | {"height": 64, "width": 64, "num_frames": 7},
    ),
    "PixArtSigmaPipeline": (
        lambda: _pipe(
            "PixArtSigmaPipeline", "PixArtTransformer2DModel", diffusers.DPMSolverMultistepScheduler(),
            text_encoder=None, tokenizer=None,
        ),
        lambda words, against: _embeds(words, against) | _masks(words) | {
            "height": 64, "width": 64, "use_resolution_binning": False, "prompt": None, "negative_prompt": None,
        },
    ),
}  # fmt: skip
