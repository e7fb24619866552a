"""FLUX.1: dev, schnell, Kontext, Fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycache.testing.tiny_models.autoencoders import image_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import clip, clip_tokenizer, t5, t5_tokenizer

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

__all__ = ["flux", "flux_fill", "flux_kontext", "flux_schnell"]

_PACKED = 16  # 2 x 2 latents of 4 channels
_MASK = 256  # one number for each of 16 x 16 pixels


def flux() -> Pipeline:
    """Dev: embedded guidance."""
    from diffusers import FluxPipeline

    return FluxPipeline(**_parts(_transformer()))


def flux_schnell() -> Pipeline:
    """Schnell: no guidance, and the same schedule at every size."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    parts = _parts(_transformer(guidance_embeds=False))
    return FluxPipeline(**parts | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})


def flux_kontext() -> Pipeline:
    """Kontext: the image to edit as further tokens."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_parts(_transformer()))


def flux_fill() -> Pipeline:
    """Fill: the masked image and the mask as further channels."""
    from diffusers import FluxFillPipeline

    return FluxFillPipeline(**_parts(_transformer(in_channels=2 * _PACKED + _MASK, out_channels=_PACKED)))


def _transformer(**sizes: Any) -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        **{
            "in_channels": _PACKED,
            "num_layers": 2,
            "num_single_layers": 4,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 6, 6),
            "guidance_embeds": True,
        }
        | sizes
    )


def _parts(transformer: FluxTransformer2DModel) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": image_autoencoder(),
        "text_encoder": clip(32),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(32),
        "tokenizer_2": t5_tokenizer(),
        "transformer": transformer,
    }
