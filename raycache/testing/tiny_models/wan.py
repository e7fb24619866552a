"""Wan: text to video and image to video, with one transformer or with two that share the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raycache.testing.tiny_models.autoencoders import wan_autoencoder
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.texts import t5_tokenizer, umt5

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

__all__ = ["wan", "wan_2_2", "wan_image_to_video", "wan_text_or_image_to_video"]

_BOUNDARY = 0.875  # of A14B: noisier steps are the first transformer's


def wan() -> Pipeline:
    """Wan 2.1, text to video."""
    from diffusers import WanPipeline

    return WanPipeline(**_parts(), transformer=_transformer())


def wan_2_2() -> Pipeline:
    """Wan 2.2 A14B, text to video: two transformers."""
    from diffusers import WanPipeline

    parts = _parts()
    return WanPipeline(**parts, transformer=_transformer(), transformer_2=_transformer(), boundary_ratio=_BOUNDARY)


def wan_text_or_image_to_video() -> Pipeline:
    """Wan 2.2 TI2V 5B, text to video: another autoencoder, and a timestep per token."""
    from diffusers import WanPipeline

    # Frames come in 2 x 2 patches, so the total downscaling is 16.
    vae = wan_autoencoder(is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16)
    return WanPipeline(**_parts() | {"vae": vae}, transformer=_transformer(), expand_timesteps=True)


def wan_image_to_video() -> Pipeline:
    """Wan 2.2 A14B, image to video: two transformers, the first frame and its mask as further channels."""
    from diffusers import WanImageToVideoPipeline

    first, second = (_transformer(in_channels=4 + 4 + 4) for _ in range(2))
    return WanImageToVideoPipeline(**_parts(), transformer=first, transformer_2=second, boundary_ratio=0.9)


def _transformer(**sizes: Any) -> WanTransformer3DModel:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        **{
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "text_dim": 32,
            "freq_dim": 16,
            "ffn_dim": 64,
        }
        | sizes
    )


def _parts() -> dict[str, Any]:
    from diffusers import UniPCMultistepScheduler

    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": umt5(32),
        "vae": wan_autoencoder(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
        ),
    }
