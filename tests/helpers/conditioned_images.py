"""The images of one batch, and the arguments of each transformer class for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Images:
    """The images of one batch at one step.

    Every image has its own conditions, so that an argument taken from the wrong row makes a difference.

    Attributes:
        seeds: one per image.
        drifts: how much of an image's latents is replaced by new noise at every step; 0.01 is almost none, 1.0 is all.
        step: the step.
    """

    seeds: tuple[int, ...]
    drifts: tuple[float, ...]
    step: int

    def latents(self, *shape: int) -> Tensor:
        still = self.fixed(*shape)
        moving = torch.stack([_normal(7919 * (self.step + 1) + seed, shape) for seed in self.seeds])
        share = torch.tensor(self.drifts).view(-1, *(1,) * len(shape))
        return still * (1 - share) + moving * share

    def fixed(self, *shape: int, salt: int = 0) -> Tensor:
        return torch.stack([_normal(104729 * salt + seed, shape) for seed in self.seeds])

    def mask(self, length: int, dtype: torch.dtype = torch.bool) -> Tensor:
        """Valid text tokens: a different number for every image."""
        return torch.stack([torch.arange(length) < length - seed % 3 for seed in self.seeds]).to(dtype)

    def times(self, scale: float = 1.0) -> Tensor:
        return torch.tensor([scale * (0.9 - 0.1 * (seed % 5)) for seed in self.seeds])


@dataclass(frozen=True)
class Tiny:
    """How to build one class small, and its arguments. A name ``Class+form`` is a variant of ``Class``."""

    config: dict[str, Any]
    inputs: Callable[[Images], dict[str, Any]]


def _normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*sizes: int) -> Tensor:
    """Position ids of a grid, row by row: [tokens, len(sizes)]."""
    return torch.cartesian_prod(*(torch.arange(size, dtype=torch.float32) for size in sizes))


def flux(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "pooled_projections": p.fixed(16, salt=2),
        "timestep": p.times(),
        "img_ids": ids(1, 4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def flux2(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(),
        "guidance": p.times(4.0),
        "img_ids": ids(1, 4, 4, 1),
        "txt_ids": ids(1, 1, 1, 6),
    }


def qwen(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 16),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_hidden_states_mask": p.mask(6),
        "timestep": p.times(),
        "img_shapes": [[(1, 4, 4)]] * len(p.seeds),
    }


def wan(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 2, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(1000),
    }


def hunyuan_video(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 2, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "pooled_projections": p.fixed(8, salt=2),
        "timestep": p.times(1000),
        "guidance": p.times(6000),
    }


def framepack(p: Images) -> dict[str, Any]:
    return hunyuan_video(p) | {
        "image_embeds": p.fixed(3, 16, salt=3),
        "indices_latents": torch.arange(2),
        "latents_clean": p.fixed(4, 1, 8, 8, salt=4),
        "indices_latents_clean": torch.arange(1),
        "latents_history_2x": p.fixed(4, 2, 8, 8, salt=5),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": p.fixed(4, 4, 8, 8, salt=6),
        "indices_latents_history_4x": torch.arange(4),
    }


def hunyuan_image(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 4, 4),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
    }


def cogvideox(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(2, 4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(1000),
    }


def cogview4(p: Images) -> dict[str, Any]:
    size = torch.tensor([[64.0, 64.0]] * len(p.seeds))
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(1000),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
        "attention_mask": p.mask(6, torch.float32),
    }


def mochi(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 2, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
    }


def ltx(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(2 * 4 * 4, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
        "video_coords": p.fixed(3, 2 * 4 * 4, salt=2).abs(),
    }


def sd3(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "pooled_projections": p.fixed(16, salt=2),
        "timestep": p.times(1000),
    }


def bria(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(1000),
        "img_ids": ids(1, 4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def kandinsky(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(2, 8, 8, 4),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "pooled_projections": p.fixed(8, salt=2),
        "timestep": p.times(1000),
        "visual_rope_pos": tuple(torch.arange(size) for size in (2, 4, 4)),
        "text_rope_pos": torch.arange(6),
    }


def motif(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 2, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
    }


def z_image(p: Images) -> dict[str, Any]:
    return {
        "x": list(p.latents(4, 1, 8, 8)),
        "cap_feats": [row[: 6 - seed % 3] for row, seed in zip(p.fixed(6, 16, salt=1), p.seeds, strict=True)],
        "t": p.times(),
    }


def pixart(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
    }


def dit(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "timestep": p.times(1000).long(),
        "class_labels": torch.tensor([seed % 10 for seed in p.seeds]),
    }
