"""LTX-2: video and sound in two streams that attend to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycache.testing.tiny_models.autoencoders import as_if_trained
from raycache.testing.tiny_models.family import Pipeline
from raycache.testing.tiny_models.gemma_texts import GEMMA_LAYERS, gemma3, gemma_tokenizer

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

__all__ = ["ltx2"]

_TEXT = 32
_VIDEO, _SOUND = 8, 4  # latent channels
_MEL = 16  # bands of sound, which the autoencoder reduces to a quarter


def ltx2() -> Pipeline:
    """LTX-2, text to video with sound."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline

    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            base_shift=0.95,
            max_shift=2.05,
            shift_terminal=0.1,
        ),
        vae=_video_autoencoder(),
        audio_vae=_sound_autoencoder(),
        text_encoder=gemma3(_TEXT),
        tokenizer=gemma_tokenizer(),
        connectors=_connectors(),
        transformer=_transformer(),
        vocoder=_vocoder(),
    )


def _transformer() -> LTX2VideoTransformer3DModel:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=_VIDEO,
        out_channels=_VIDEO,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        audio_in_channels=_SOUND * _MEL // 4,
        audio_out_channels=_SOUND * _MEL // 4,
        audio_num_attention_heads=4,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=32,
        caption_channels=_TEXT,
    )


def _connectors() -> LTX2TextConnectors:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=_TEXT,
        text_proj_in_factor=GEMMA_LAYERS + 1,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=16,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=16,
    )


def _video_autoencoder() -> AutoencoderKLLTX2Video:
    """Downscales sides by 32, frames except the first by 8; latents are scaled as after training."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=_VIDEO,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    as_if_trained(vae, mean="latents_mean", spread="latents_std")
    return vae


def _sound_autoencoder() -> AutoencoderKLLTX2Audio:
    from diffusers import AutoencoderKLLTX2Audio

    return AutoencoderKLLTX2Audio(
        base_channels=_SOUND * _MEL // 4,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        latent_channels=_SOUND,
        mel_bins=_MEL,
    )


def _vocoder() -> LTX2Vocoder:
    """From bands to waves: two channels at 24 kHz."""
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    return LTX2Vocoder(in_channels=2 * _MEL, hidden_channels=32)
