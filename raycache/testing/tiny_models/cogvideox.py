"""CogVideoX: text and video tokens in one attention."""

from __future__ import annotations

from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import t5, t5_tokenizer

__all__ = ["cogvideox"]


def cogvideox() -> Pipeline:
    """With the structure of the 5B: rotary positions."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDPMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    return CogVideoXPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(32),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.7,
        ),
        transformer=CogVideoXTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=5,
            num_attention_heads=4,
            attention_head_dim=16,
            time_embed_dim=16,
            text_embed_dim=32,
            sample_width=8,
            sample_height=8,
            sample_frames=9,
            use_rotary_positional_embeddings=True,
        ),
        scheduler=CogVideoXDPMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    )
