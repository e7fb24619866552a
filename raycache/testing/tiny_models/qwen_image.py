"""Qwen-Image: text to image, and edits, whose text encoder also gets the image."""

from __future__ import annotations

from typing import Any

from raycache.testing.tiny_models.autoencoders import qwen_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.qwen_texts import qwen_processor, qwen_tokenizer, qwen_vl

__all__ = ["qwen_image", "qwen_image_edit", "qwen_image_edit_plus"]


def qwen_image() -> Pipeline:
    """Qwen-Image; 2512 has the same structure."""
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(**_parts())


def qwen_image_edit() -> Pipeline:
    """Edit: one input image, as further tokens and in the prompt."""
    from diffusers import QwenImageEditPipeline

    parts = _edit_parts()
    return QwenImageEditPipeline(**parts, processor=qwen_processor(parts["tokenizer"]))


def qwen_image_edit_plus() -> Pipeline:
    """Edit 2511: several input images, which the transformer gets at timestep 0."""
    from diffusers import QwenImageEditPlusPipeline

    parts = _edit_parts(zero_cond_t=True)
    return QwenImageEditPlusPipeline(**parts, processor=qwen_processor(parts["tokenizer"]))


def _edit_parts(**transformer: Any) -> dict[str, Any]:
    """Smaller than text to image needs them: each image is enlarged to a megapixel, which the published VAE makes
    4096 tokens. This one halves its side once more, to 1024."""
    sizes = {"num_layers": 4, "attention_head_dim": 8, "axes_dims_rope": (4, 2, 2)}
    return _parts(base=2, stages=4, **sizes, **transformer)


def _parts(base: int = 8, stages: int = 3, **transformer: Any) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            base_shift=0.5,
            max_shift=0.9,
            shift_terminal=0.02,
        ),
        "vae": qwen_autoencoder(base, stages),
        "text_encoder": qwen_vl(32),
        "tokenizer": qwen_tokenizer(),
        "transformer": QwenImageTransformer2DModel(
            **{
                "in_channels": 16,  # 2 x 2 latents of 4 channels
                "out_channels": 4,
                "num_layers": 5,
                "num_attention_heads": 4,
                "attention_head_dim": 16,
                "joint_attention_dim": 32,
                "axes_dims_rope": (4, 6, 6),
            }
            | transformer
        ),
    }
