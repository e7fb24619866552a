"""Tiny versions of less common image transformers, and the arguments of each."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.conditioned_images import Images, Tiny, ids

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_CHANNELS = {"in_channels": 4, "out_channels": 4}
_JOY = _CHANNELS | {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 4,
    "rope_dim_list": [4, 6, 6],
}


def _image(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(),
    }


def _video(p: Images) -> dict[str, Any]:
    return _image(p) | {"hidden_states": p.latents(4, 2, 8, 8), "timestep": p.times(1000)}


def _cogview3(p: Images) -> dict[str, Any]:
    size = torch.tensor([[64.0, 64.0]] * len(p.seeds))
    sizes = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
    return _image(p) | {"timestep": p.times(1000)} | sizes


def _omnigen(p: Images) -> dict[str, Any]:
    mask = torch.cat([p.mask(6, torch.long), torch.ones(len(p.seeds), 17, dtype=torch.long)], dim=1)
    return {
        "hidden_states": p.latents(4, 8, 8),
        "timestep": p.times(),
        "input_ids": (p.fixed(6, salt=1).abs() * 7).long() % 16,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask[:, None, :].expand(-1, 23, -1),
        "position_ids": torch.arange(23).expand(len(p.seeds), -1),
    }


def _fibo(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "text_encoder_layers": [p.fixed(6, 8, salt=10 + layer) for layer in range(5)],
        "timestep": p.times(1000),
        "img_ids": ids(1, 4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def _fibo2(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(
            3, 6, 16, salt=1
        ),  # for the text summary, then for each block that reads the text
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(),
    }


def _lumina_next(p: Images) -> dict[str, Any]:
    angles = torch.outer(torch.arange(16.0), torch.arange(1.0, 9.0)).reshape(4, 4, 8)
    return _image(p) | {
        "encoder_mask": p.mask(6),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


def _joy_plus(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(24, 4, 1, 2, 2),
        "timestep": p.times(1000),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_hidden_states_mask": p.mask(6, torch.float32),
        "shape_list": [[(1, 4, 4), (1, 2, 4 if seed % 2 else 2)] for seed in p.seeds],
    }


def _nucleus(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 16),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_hidden_states_mask": p.mask(6),
        "timestep": p.times(),
        "img_shapes": [(1, 4, 4)] * len(p.seeds),
    }


_FIBO2 = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 4,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "cap_feat_dim": 16,
    "injection_layer_ids": (1, 2),
    "perceiver_num_layers": 1,
    "min_num_gist_tokens": 2,
    "max_num_gist_tokens": 6,
    "gist_step": 2,
    "gist_min_text_len": 2,
    "gist_max_text_len": 6,
    "axes_dims": (4, 6, 6),
    "axes_lens": (64, 32, 32),
}
TINY: dict[str, Tiny] = {
    "BriaFibo2Transformer2DModel": Tiny(_FIBO2, _fibo2),
    "BriaFibo2Transformer2DModel+edit": Tiny(
        _FIBO2, lambda p: _fibo2(p) | {"context_latents": [p.fixed(4, 4, 8, salt=2)]}
    ),
    "AuraFlowTransformer2DModel": Tiny(
        _HEADS
        | _CHANNELS
        | {
            "sample_size": 8,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 3,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        _image,
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        _HEADS
        | _CHANNELS
        | {
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        _cogview3,
    ),
    "PRXTransformer2DModel": Tiny(
        {"in_channels": 4, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2, "depth": 4, "axes_dim": [8, 8]},
        lambda p: _image(p) | {"attention_mask": p.mask(6)},
    ),
    "OmniGenTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 4,
            "pad_token_id": 0,
            "vocab_size": 16,
            "max_position_embeddings": 32,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"long_factor": [1] * 8, "short_factor": [1] * 8},
            "pos_embed_max_size": 8,
            "time_step_dim": 16,
        },
        _omnigen,
    ),
    "BriaFiboTransformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 8,
            "num_layers": 2,
            "num_single_layers": 3,
            "joint_attention_dim": 16,
            "text_encoder_dim": 8,
            "axes_dims_rope": [4, 6, 6],
        },
        _fibo,
    ),
    "LuminaNextDiT2DModel": Tiny(
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 4,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cross_attention_dim": 16,
            "learn_sigma": False,
        },
        _lumina_next,
    ),
    "JoyImageEditTransformer3DModel": Tiny(_JOY, _video),
    "JoyImageEditPlusTransformer3DModel": Tiny(_JOY, _joy_plus),
    "NucleusMoEImageTransformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 5,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "mlp_ratio": 8.0,  # the inner size is rounded down to a multiple of 128
            "num_experts": 2,
            "moe_intermediate_dim": 16,
            "capacity_factors": 1.0,
        },
        _nucleus,
    ),
}
