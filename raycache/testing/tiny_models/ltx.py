"""LTX-Video: text to video, whose autoencoder downscales sides by 32 and frames by 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycache.testing.tiny_models.autoencoders import as_if_trained
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import t5, t5_tokenizer

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

__all__ = ["ltx"]


def ltx() -> Pipeline:
    """LTX-Video 0.9."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel

    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            base_shift=0.95,
            max_shift=2.05,
            shift_terminal=0.1,
        ),
        vae=_autoencoder(),
        text_encoder=t5(32),
        tokenizer=t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_layers=5,
            num_attention_heads=4,
            attention_head_dim=16,
            cross_attention_dim=64,
            caption_channels=32,
        ),
    )


def _autoencoder() -> AutoencoderKLLTXVideo:
    """Latents are scaled as after training."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo

    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    as_if_trained(vae, mean="latents_mean", spread="latents_std")
    return vae
