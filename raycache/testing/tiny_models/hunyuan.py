"""HunyuanVideo 1.5 and HunyuanImage 2.1: Qwen2.5-VL for the prompt, ByT5 for words to show in the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.qwen_texts import qwen_tokenizer, qwen_vl, qwen_vl_text
from raycache.testing.tiny_models.texts import BYTE_TOKENS, byte_tokenizer, t5

if TYPE_CHECKING:
    from diffusers import AutoencoderKLHunyuanImage, AutoencoderKLHunyuanVideo15

__all__ = ["hunyuan_image", "hunyuan_video_15"]

_LATENTS = 4
_TEXT, _LETTERS = 32, 16


def hunyuan_video_15() -> Pipeline:
    """Text to video: guidance by a second call, from a separate component."""
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )

    return HunyuanVideo15Pipeline(
        text_encoder=qwen_vl_text(_TEXT),
        tokenizer=qwen_tokenizer(),
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=2 * _LATENTS + 1,  # noise, an image's latents, and which frames have one
            out_channels=_LATENTS,
            num_layers=4,
            num_refiner_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            text_embed_dim=_TEXT,
            text_embed_2_dim=_LETTERS,
            image_embed_dim=16,
            rope_axes_dim=(4, 6, 6),
            target_size=64,
            task_type="t2v",
        ),
        vae=_video_autoencoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=t5(_LETTERS, BYTE_TOKENS),
        tokenizer_2=byte_tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )


def hunyuan_image() -> Pipeline:
    """Text to image; downscales by 32."""
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )

    return HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=_image_autoencoder(),
        text_encoder=qwen_vl(_TEXT),
        tokenizer=qwen_tokenizer(),
        text_encoder_2=t5(_LETTERS, BYTE_TOKENS),
        tokenizer_2=byte_tokenizer(),
        transformer=HunyuanImageTransformer2DModel(
            in_channels=_LATENTS,
            out_channels=_LATENTS,
            num_layers=2,
            num_single_layers=3,
            num_refiner_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            text_embed_dim=_TEXT,
            text_embed_2_dim=_LETTERS,
            rope_axes_dim=(8, 8),
        ),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, enabled=True),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, enabled=True),
    )


def _video_autoencoder() -> AutoencoderKLHunyuanVideo15:
    """Downscales sides by 16, frames except the first by 4."""
    from diffusers import AutoencoderKLHunyuanVideo15

    return AutoencoderKLHunyuanVideo15(latent_channels=_LATENTS, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1)


def _image_autoencoder() -> AutoencoderKLHunyuanImage:
    from diffusers import AutoencoderKLHunyuanImage

    return AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=_LATENTS,
        block_out_channels=(32, 32, 32, 32, 32, 32),  # its norms have 32 groups
        layers_per_block=1,
        spatial_compression_ratio=32,
        sample_size=64,
        scaling_factor=0.75,
    )
