"""Z-Image: one stream of text and image tokens."""

from __future__ import annotations

from raycache.testing.tiny_models.autoencoders import image_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.qwen_texts import qwen3, qwen_tokenizer

__all__ = ["z_image", "z_image_3_heads"]


def z_image() -> Pipeline:
    """Z-Image; Turbo has the same structure."""
    return _pipeline(heads=4)


def z_image_3_heads() -> Pipeline:
    """Heads that do not divide among two ranks, like the real model's 30 among four."""
    return _pipeline(heads=3)


def _pipeline(heads: int) -> Pipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_autoencoder(),
        text_encoder=qwen3(32),
        tokenizer=qwen_tokenizer(),
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=16 * heads,
            n_layers=4,
            n_refiner_layers=1,
            n_heads=heads,
            n_kv_heads=heads,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
    )
