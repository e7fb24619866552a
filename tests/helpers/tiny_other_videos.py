"""Tiny versions of less common video transformers, and the arguments of each."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.conditioned_images import Images, Tiny, ids, kandinsky

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_CHANNELS = {"in_channels": 4, "out_channels": 4}
_WAN = _HEADS | _CHANNELS | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4}
_COSMOS = _HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "text_embed_dim": 16,
    "adaln_lora_dim": 8,
    "max_size": (4, 8, 8),
    "concat_padding_mask": False,  # needs torchvision
}
_COGVIDEOX = _HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 4,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": 6,
}
_KANDINSKY6 = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 16,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": 32,
    "ff_dim": 32,
    "num_text_blocks": 1,
    "num_visual_blocks": 4,
    "axes_dims": (4, 6, 6),
    "visual_cond": False,
    "in_audio_dim": 4,
    "out_audio_dim": 4,
}


def _image(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(),
    }


def _video(p: Images) -> dict[str, Any]:
    return _image(p) | {"hidden_states": p.latents(4, 2, 8, 8), "timestep": p.times(1000)}


def _frames_first(p: Images) -> dict[str, Any]:
    return _image(p) | {"hidden_states": p.latents(2, 4, 8, 8), "timestep": p.times(1000)}


def _cosmos(p: Images) -> dict[str, Any]:
    return _video(p) | {"timestep": p.times(), "fps": 16}


def _allegro(p: Images) -> dict[str, Any]:
    angles = torch.outer(torch.arange(4.0), torch.arange(1.0, 5.0)).repeat(1, 2)
    places = tuple(ids(2, 4, 4).long().T[:, None])
    return _video(p) | {
        "encoder_attention_mask": p.mask(6),
        "image_rotary_emb": (((angles.cos(), angles.sin()),) * 3, places),
    }


def _helios(p: Images) -> dict[str, Any]:
    frames = torch.arange(2).expand(len(p.seeds), -1)
    return _video(p) | {
        "indices_hidden_states": frames + 3,
        "indices_latents_history_short": frames,
        "latents_history_short": p.fixed(4, 2, 8, 8, salt=2),
    }


def _anyflow(p: Images) -> dict[str, Any]:
    times = p.times(1000)[:, None].expand(-1, 2)
    return _frames_first(p) | {"timestep": times, "r_timestep": times / 2}


def _kandinsky6(p: Images) -> dict[str, Any]:
    given = kandinsky(p)
    return {key: given[key] for key in ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")}


TINY: dict[str, Tiny] = {
    "AllegroTransformer3DModel": Tiny(
        _CHANNELS
        | {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "num_layers": 4,
            "cross_attention_dim": 48,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": 16,
        },
        _allegro,
    ),
    "ConsisIDTransformer3DModel": Tiny(_COGVIDEOX, _frames_first),
    "CosmosTransformer3DModel": Tiny(_COSMOS, _cosmos),
    "EasyAnimateTransformer3DModel": Tiny(
        _HEADS
        | _CHANNELS
        | {
            "patch_size": 2,
            "sample_width": 8,
            "sample_height": 8,
            "num_layers": 4,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
        },
        _video,
    ),
    "HeliosTransformer3DModel": Tiny(_WAN | {"rope_dim": (4, 6, 6)}, _helios),
    "AnyFlowTransformer3DModel": Tiny(_WAN, _anyflow),
    "SanaVideoTransformer3DModel": Tiny(
        _HEADS
        | _CHANNELS
        | {
            "num_layers": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 8,
        },
        lambda p: _video(p) | {"encoder_attention_mask": p.mask(6, torch.float32)},
    ),
    "Kandinsky6Transformer3DModel": Tiny(_KANDINSKY6, _kandinsky6),
    "Kandinsky6Transformer3DModel+sound": Tiny(
        _KANDINSKY6, lambda p: _kandinsky6(p) | {"audio_hidden_states": p.latents(5, 4)}
    ),
}
