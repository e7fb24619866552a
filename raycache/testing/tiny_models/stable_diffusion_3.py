"""Stable Diffusion 3.5: three text encoders, and blocks with a second attention over the image."""

from __future__ import annotations

from raycache.testing.tiny_models.autoencoders import image_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import clip_projected, clip_tokenizer, t5, t5_tokenizer

__all__ = ["stable_diffusion_3"]


def stable_diffusion_3() -> Pipeline:
    """With the structure of 3.5 Medium: Large has no second attention."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=16,  # inpainting requires this number
            out_channels=16,
            num_layers=5,
            num_attention_heads=4,
            attention_head_dim=16,
            joint_attention_dim=32,
            caption_projection_dim=64,
            pooled_projection_dim=32,
            pos_embed_max_size=32,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_autoencoder(16),
        text_encoder=clip_projected(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_projected(16),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(32),
        tokenizer_3=t5_tokenizer(),
    )
