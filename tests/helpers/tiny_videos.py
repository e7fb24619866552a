"""Tiny versions of the video transformers of 2025 and 2026, and the arguments of each."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.conditioned_images import Images, Tiny, wan

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_HUNYUAN_VIDEO_15 = _HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "text_embed_2_dim": 8,
    "image_embed_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}

_WAN = _HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4}
_WAN_ANIMATE = _WAN | {
    "in_channels": 12,
    "latent_channels": 4,
    "image_dim": 8,
    "added_kv_proj_dim": 32,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
_LTX2 = _HEADS | {
    "in_channels": 8,
    "out_channels": 8,
    "cross_attention_dim": 32,
    "audio_in_channels": 8,
    "audio_out_channels": 8,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 4,
    "caption_channels": 16,
}


def _ltx2(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(2 * 4 * 4, 8),
        "audio_hidden_states": p.latents(5, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "audio_encoder_hidden_states": p.fixed(6, 16, salt=2),
        "encoder_attention_mask": p.mask(6),
        "audio_encoder_attention_mask": p.mask(6),
        "timestep": p.times(1000),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "audio_num_frames": 5,
    }


def _ltx23(p: Images) -> dict[str, Any]:
    """With guidance: the attention of one block is perturbed for every other video."""
    return _ltx2(p) | {
        "encoder_hidden_states": p.fixed(6, 32, salt=1),
        "sigma": p.times(1000),
        "spatio_temporal_guidance_blocks": [1],
        "perturbation_mask": torch.tensor([float(seed % 2) for seed in p.seeds]),
    }


def _wan_animate(p: Images) -> dict[str, Any]:
    return wan(p) | {
        "hidden_states": p.latents(12, 3, 8, 8),
        "encoder_hidden_states_image": p.fixed(5, 8, salt=2),
        "pose_hidden_states": p.fixed(4, 2, 8, 8, salt=3),
        "face_pixel_values": p.fixed(3, 8, 16, 16, salt=4),
    }


def _diffusion_forcing(p: Images) -> dict[str, Any]:
    times = torch.stack([p.times(1000), p.times(500)], dim=1)  # each frame has its own
    return wan(p) | {"timestep": times, "enable_diffusion_forcing": True}


def _hunyuan_video_15(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 2, 4, 4),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "encoder_hidden_states_2": p.fixed(3, 8, salt=2),
        "encoder_attention_mask_2": p.mask(3),
        "image_embeds": p.fixed(2, 8, salt=3),
        "timestep": p.times(1000),
    }


TINY: dict[str, Tiny] = {
    "HunyuanVideo15Transformer3DModel": Tiny(
        _HUNYUAN_VIDEO_15, lambda p: _hunyuan_video_15(p) | {"image_embeds": torch.zeros(len(p.seeds), 2, 8)}
    ),
    "HunyuanVideo15Transformer3DModel+image": Tiny(_HUNYUAN_VIDEO_15, _hunyuan_video_15),
    "LTX2VideoTransformer3DModel": Tiny(_LTX2, _ltx2),
    "LTX2VideoTransformer3DModel+2.3": Tiny(
        _LTX2
        | {
            "gated_attn": True,
            "cross_attn_mod": True,
            "audio_gated_attn": True,
            "audio_cross_attn_mod": True,
            "perturbed_attn": True,
            "use_prompt_embeddings": False,
        },
        _ltx23,
    ),
    "SkyReelsV2Transformer3DModel": Tiny(_WAN, wan),
    # Not with `inject_sample_info`: diffusers adds the frame rate to one video only.
    "SkyReelsV2Transformer3DModel+diffusion_forcing": Tiny(_WAN | {"num_frame_per_block": 2}, _diffusion_forcing),
    "ChronoEditTransformer3DModel": Tiny(_WAN, wan),
    "WanAnimateTransformer3DModel": Tiny(_WAN_ANIMATE, _wan_animate),
}
