"""FLUX.2: dev, and klein, distilled and not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycache.testing.tiny_models.autoencoders import as_if_trained
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.mistral_texts import mistral3, mistral_tokenizer
from raycache.testing.tiny_models.qwen_texts import qwen3_causal, qwen_tokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

__all__ = ["flux2", "flux2_autoencoder", "flux2_klein", "flux2_klein_base"]

_LATENTS = 4
_TEXT = 16
_KLEIN_LAYERS = 28  # the prompt is read after the 9th, the 18th and the 27th
_DEV_LAYERS = 31  # and here after the 10th, the 20th and the 30th


def flux2() -> Pipeline:
    """Dev: embedded guidance."""
    from diffusers import Flux2Pipeline

    return Flux2Pipeline(
        **_parts(guidance_embeds=True),
        text_encoder=mistral3(_TEXT, _DEV_LAYERS),
        tokenizer=mistral_tokenizer(),
    )


def flux2_klein() -> Pipeline:
    """Klein, distilled: no guidance."""
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(**_parts(), **_klein_texts(), is_distilled=True)


def flux2_klein_base() -> Pipeline:
    """Klein before distillation: guidance by a second call."""
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(**_parts(), **_klein_texts())


def _klein_texts() -> dict[str, Any]:
    return {"text_encoder": qwen3_causal(_TEXT, _KLEIN_LAYERS), "tokenizer": qwen_tokenizer()}


def _parts(guidance_embeds: bool = False) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": flux2_autoencoder(),
        "transformer": Flux2Transformer2DModel(
            in_channels=4 * _LATENTS,
            num_layers=2,
            num_single_layers=4,
            num_attention_heads=4,
            attention_head_dim=16,
            joint_attention_dim=3 * _TEXT,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
    }


def flux2_autoencoder() -> AutoencoderKLFlux2:
    """Downscales by 8; latents are normalized in packs of 2 x 2, as after training."""
    from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=_LATENTS, norm_num_groups=4
    )
    as_if_trained(vae, mean="bn.running_mean", spread="bn.running_var")
    return vae
