"""FLUX.1: packed latents, two text encoders of which T5 sets the prompt's length, guidance embedded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raycache.models.family import ModelFamily

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["FluxFamily"]

#: More than this FluxPipeline does not take.
_MOST_TEXT_TOKENS = 512


class FluxFamily(ModelFamily):
    """FLUX.1, run with diffusers' ``FluxPipeline``."""

    called = "FLUX"
    transformer = "FluxTransformer2DModel"
    parts: ClassVar[Mapping[str, str]] = {
        "transformer": "config.json",
        "vae": "config.json",
        "text_encoder": "config.json",
        "text_encoder_2": "config.json",
        "tokenizer": "*",
        "tokenizer_2": "*",
        "scheduler": "scheduler_config.json",
    }
    with_weights = ("transformer", "vae", "text_encoder", "text_encoder_2")
    token_side = 16  # the VAE shrinks by 8, and 2x2 latents are packed into one token

    def num_blocks(self, config: Mapping[str, Any]) -> int:
        """Double-stream and single-stream blocks."""
        return int(config["num_layers"] + config["num_single_layers"])

    def num_heads(self, config: Mapping[str, Any]) -> int:
        """Of both kinds of blocks."""
        return int(config["num_attention_heads"])

    def text_tokens_told(self, folder: Path) -> int:
        """As :meth:`text_tokens`, from T5's tokenizer."""
        told = json.loads((folder / "tokenizer_2" / "tokenizer_config.json").read_text(encoding="utf-8"))
        return min(int(told["model_max_length"]), _MOST_TEXT_TOKENS)

    def load(self, folder: str, dtype: torch.dtype) -> Any:
        """A ``FluxPipeline``."""
        from diffusers import FluxPipeline

        return FluxPipeline.from_pretrained(folder, dtype=dtype)

    def text_tokens(self, pipe: Any) -> int:
        """What T5's tokenizer says, as far as the pipeline goes along."""
        return min(int(pipe.tokenizer_2.model_max_length), _MOST_TEXT_TOKENS)

    def prompt_warnings(self, pipe: Any, prompt: str, text_tokens: int) -> list[str]:
        """Whether T5 is told only the beginning."""
        tokens = len(pipe.tokenizer_2(prompt, verbose=False).input_ids)
        if tokens <= text_tokens:
            return []
        return [f"prompt: {tokens} tokens, of which this model reads the first {text_tokens}"]

    def encode(
        self, pipe: Any, prompts: Sequence[str], rows: Sequence[int], device: torch.device, text_tokens: int
    ) -> dict[str, Any]:
        """T5's states [images, tokens, width] and CLIP's pooled one [images, width]."""
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=list(prompts), prompt_2=None, device=device, max_sequence_length=text_tokens
        )
        index = list(rows)
        return {
            "prompt_embeds": embeds[index],
            "pooled_prompt_embeds": pooled[index],
            "max_sequence_length": text_tokens,
        }

    def noise(
        self, pipe: Any, encoded: Mapping[str, Any], generators: Sequence[torch.Generator], height: int, width: int
    ) -> torch.Tensor:
        """Packed latents [images, image tokens, channels]."""
        embeds: torch.Tensor = encoded["prompt_embeds"]
        channels = pipe.transformer.config.in_channels // 4
        shape = len(generators), channels, height, width
        noise: torch.Tensor = pipe.prepare_latents(*shape, embeds.dtype, embeds.device, list(generators), None)[0]
        return noise

    def decode(self, pipe: Any, latents: torch.Tensor, height: int, width: int) -> np.ndarray:
        """Unpacked, scaled, decoded."""
        from raycache.models.picture import pixels

        return pixels(pipe, _unpacked(pipe, latents, height, width))

    def preview(
        self, pipe: Any, before: torch.Tensor, after: torch.Tensor, step: int, height: int, width: int
    ) -> np.ndarray:
        """Where flow matching's step leads; halved before it is decoded."""
        from raycache.models.picture import clean, halved, pixels

        latents = clean(pipe.scheduler, before, after, step)
        return pixels(pipe, halved(_unpacked(pipe, latents, height, width)))


def _unpacked(pipe: Any, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[images, tokens, channels] to [images, channels / 4, height / 8, width / 8]."""
    unpacked: torch.Tensor = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    return unpacked
