"""Qwen-Image 2.1: one stream of text and image tokens, and images with an alpha channel."""

from __future__ import annotations

from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.qwen_texts import qwen3_vl, qwen_processor, qwen_tokenizer

__all__ = ["qwen_image_21"]


def qwen_image_21() -> Pipeline:
    """Text to image, and edits by the same pipeline."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, -0.4],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        ),
        text_encoder=qwen3_vl(32),
        processor=qwen_processor(qwen_tokenizer(), patch=16),
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=5,
            num_attention_heads=4,
            attention_head_dim=16,
            context_in_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )
