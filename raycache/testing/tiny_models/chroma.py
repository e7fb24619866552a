"""Chroma: FLUX.1's blocks with modulations from a separate network, only T5, guidance by a second call."""

from __future__ import annotations

from raycache.testing.tiny_models.autoencoders import image_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import t5, t5_tokenizer

__all__ = ["chroma"]


def chroma() -> Pipeline:
    """Chroma 1."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=image_autoencoder(),
        text_encoder=t5(32),
        tokenizer=t5_tokenizer(),
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=4,
            num_attention_heads=4,
            attention_head_dim=16,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
    )
