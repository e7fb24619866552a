"""The parts of a demonstration model: 8 + 12 of FLUX's blocks and an 8x autoencoder at a laptop's width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from raycache.demo.noise import LATENT_CHANNELS, rope_axes

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL, FluxTransformer2DModel  # diffusers' top-level names are untyped
    from transformers import CLIPTextModel, T5EncoderModel

LAYERS = 8
SINGLE_LAYERS = 12
HEADS = 4
HEAD_DIM = 16
TEXT_WIDTH = 64
TEXT_TOKENS = 16
"""Tokens that every prompt is padded to: nine describe two things and a background, the rest is spare."""


def make_autoencoder() -> AutoencoderKL:
    """8x reduction, 4 latent channels; half of its work at full size, where few channels are enough for flat colour."""
    from diffusers.models import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # One group: with one channel per group the absolute colour is normalised away.
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def make_transformer(layers: int = LAYERS, single_layers: int = SINGLE_LAYERS) -> FluxTransformer2DModel:
    """FLUX.1's transformer at width 64, every block an identity and the output zero (adaLN-zero)."""
    from diffusers.models import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=rope_axes(HEAD_DIM),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
            if "norm" in name or name == "proj_out":
                torch.nn.init.zeros_(module.weight)
    return transformer


def make_text_encoders(t5_words: int, clip_words: int) -> tuple[T5EncoderModel, CLIPTextModel]:
    """The two text encoders at width 64, two layers each.

    Args:
        t5_words: size of the T5 vocabulary, padding and end of text first.
        clip_words: size of the CLIP vocabulary, start and end of text last.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    starts: dict[str, Any] = {"decoder_start_token_id": 0}  # accepted, but not declared
    t5 = T5Config(
        vocab_size=t5_words,
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 4,
        d_ff=4 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        **starts,
        pad_token_id=0,
        eos_token_id=1,
    )
    clip = CLIPTextConfig(
        vocab_size=clip_words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=clip_words - 2,
        eos_token_id=clip_words - 1,
        pad_token_id=clip_words - 1,
    )
    return T5EncoderModel(t5), CLIPTextModel(clip)
