"""Sana: linear attention, and an autoencoder that downscales by 32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.gemma_texts import gemma2, gemma_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

__all__ = ["sana"]

_LATENTS = 4


def sana() -> Pipeline:
    """Sana at 1024 pixels, to which its pipeline rounds sizes by default."""
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    return SanaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=gemma2(32),
        vae=_autoencoder(),
        transformer=SanaTransformer2DModel(
            in_channels=_LATENTS,
            out_channels=_LATENTS,
            num_layers=5,
            num_attention_heads=4,
            attention_head_dim=16,
            num_cross_attention_heads=4,
            cross_attention_head_dim=16,
            cross_attention_dim=64,
            caption_channels=32,
            sample_size=32,
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        ),
    )


def _autoencoder() -> AutoencoderDC:
    from diffusers import AutoencoderDC

    widths = (8, 8, 8, 8, 8, 8)
    return AutoencoderDC(
        latent_channels=_LATENTS,
        attention_head_dim=8,
        encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        scaling_factor=0.4,
    )
