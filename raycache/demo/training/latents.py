"""The transformer's training data: scenes as packed latents and word ids, rendered and encoded once."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from raycache.demo.training.autoencoder import as_input
from raycache.demo.training.drawer import pack
from raycache.demo.training.parts import TEXT_TOKENS
from raycache.demo.words import forward, make_tokenizers
from raycache.demo.world import loose_caption, random_scene, render

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL

LOOSE_SHARE = 0.15
"""Share of scenes with a user's phrasing instead of a caption."""
OTHER_SIZES = {(256, 256): 0.5, (192, 192): 0.2, (256, 128): 0.15, (128, 256): 0.15}
"""Width and height of the images mixed with those of 128x128, and the share of such steps that uses them."""


@dataclass(frozen=True)
class Latents:
    """Scenes of one size.

    Attributes:
        packed: float16 ``[scenes, tokens, 16]``, of unit variance over the whole set.
        t5_ids: int64 ``[scenes, words]``.
        clip_ids: int64 ``[scenes, words]``.
        grid: rows and columns of image tokens.
    """

    packed: torch.Tensor
    t5_ids: torch.Tensor
    clip_ids: torch.Tensor
    grid: tuple[int, int]


@torch.no_grad()
def encode_scenes(
    model: AutoencoderKL, count: int, width: int, height: int, seed: int, device: torch.device
) -> Generator[tuple[int, dict[str, float]], None, Latents]:
    """Draw ``count`` training scenes, encode and pack them, not yet scaled.

    Yields:
        (scenes done, no figures) from time to time; returns the latents.
    """
    rng = np.random.default_rng((seed, width, height))
    t5, clip = make_tokenizers(TEXT_TOKENS)
    parts: list[torch.Tensor] = []
    captions: list[str] = []
    while len(captions) < count:
        images = []
        for _ in range(min(64, count - len(captions))):
            scene = random_scene(rng)
            images.append(render(scene, width, height, rng))
            loose = rng.random() < LOOSE_SHARE
            captions.append(loose_caption(scene, rng) if loose else scene.caption)
        batch = as_input(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), device)
        parts.append(pack(model.encode(batch).latent_dist.mean).half().cpu())
        yield len(captions), {}
    t5_ids, clip_ids = (
        tokenizer(
            captions, padding="max_length", truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        ).input_ids
        for tokenizer in (t5, clip)
    )
    return Latents(torch.cat(parts), t5_ids, clip_ids, (height // 16, width // 16))


def save_latents(path: Path, sets: list[Latents], shift: float, scale: float) -> None:
    """Write ``sets`` of raw latents and the shift and scale with which ``(raw - shift) * scale`` has unit variance."""
    state = {"sets": [vars(part) for part in sets], "shift": shift, "scale": scale}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def told_forward(part: Latents) -> Latents:
    """The same scenes with captions whose first thing is the left or the upper one."""
    told = []
    for ids, tokenizer in zip((part.t5_ids, part.clip_ids), make_tokenizers(TEXT_TOKENS), strict=True):
        lines = tokenizer.batch_decode(ids, skip_special_tokens=True)
        captions = [" ".join(forward(line.replace("2", "").split())) for line in lines]
        told.append(tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids)
    t5_ids, clip_ids = told
    return Latents(part.packed, t5_ids, clip_ids, part.grid)


def untold(part: Latents) -> Latents:
    """The same scenes without captions: what a pipeline encodes for an empty prompt."""
    t5_ids, clip_ids = (
        tokenizer("", padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt").input_ids
        for tokenizer in make_tokenizers(TEXT_TOKENS)
    )
    return Latents(part.packed, t5_ids.expand_as(part.t5_ids), clip_ids.expand_as(part.clip_ids), part.grid)


def load_latents(path: Path) -> tuple[list[Latents], float, float]:
    """Scaled sets, 128x128 first, then shift and scale."""
    state = torch.load(path, weights_only=True)
    shift, scale = state["shift"], state["scale"]
    sets = [Latents(**{**part, "packed": ((part["packed"].float() - shift) * scale).half()}) for part in state["sets"]]
    return sets, shift, scale
