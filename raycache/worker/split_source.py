"""Building blocks of small transformer inputs: numbers that are the same on all ranks, and common parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Inputs", "Source", "image_and_text", "masked_text", "places", "time", "video"]

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What inputs are made from.

    Attributes:
        config: the transformer's.
        ranks: number of ranks that it will be split over.
        generator: the source of all numbers, on the CPU and in float32, so that they are the same on every rank.
    """

    config: Any
    ranks: int
    generator: torch.Generator

    @property
    def text(self) -> int:
        return 2 * self.ranks

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def states(self, channels: int, tokens: int = 0) -> torch.Tensor:
        """Text, [1, tokens, channels]; ``tokens`` 0 = two for each rank."""
        return self.normal(1, tokens or self.text, channels)

    def mask(self) -> torch.Tensor:
        """[1, text tokens], the last one masked."""
        return torch.arange(self.text)[None] < self.text - 1

    def guidance(self, value: float) -> Inputs:
        """A guidance scale, for guidance-distilled models."""
        return {"guidance": torch.tensor([value])} if self.config.guidance_embeds else {}


def time(value: float) -> torch.Tensor:
    return torch.tensor([value])


def image_and_text(s: Source) -> Inputs:
    """Packed latents [1, 2 x (2 x ranks), channels] and text, as models after FLUX take them."""
    image = s.normal(1, 4 * s.ranks, s.config.in_channels)
    return {"hidden_states": image, "encoder_hidden_states": s.states(s.config.joint_attention_dim)}


def places(s: Source, axes: int) -> dict[str, torch.Tensor]:
    """Position ids of image tokens in a grid, and of text tokens: [tokens, axes] each."""
    image, text = torch.zeros(4 * s.ranks, axes), torch.zeros(s.text, axes)
    image[:, 1:3] = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0 * s.ranks))
    if axes == 4:
        text[:, 3] = torch.arange(s.text)
    return {"img_ids": image, "txt_ids": text}


def masked_text(s: Source, channels: int) -> Inputs:
    return {"encoder_hidden_states": s.states(channels), "encoder_attention_mask": s.mask()}


def video(s: Source, patch: tuple[int, int, int]) -> Inputs:
    """Latents [1, channels, frames, height, width] of 2 x 2 x ranks tokens."""
    sizes = (size * side for size, side in zip((2, 2, s.ranks), patch, strict=True))
    return {"hidden_states": s.normal(1, s.config.in_channels, *sizes)}
