"""Tiny versions of the image transformers of 2025 and 2026, and the arguments of each."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.conditioned_images import Images, Tiny, ids

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_PACKED = _HEADS | {"in_channels": 8, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
_STACKS = {"num_layers": 2, "num_single_layers": 3}
_CHROMA = _PACKED | _STACKS | {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
_FLUX3 = _HEADS | {
    "in_channels": 8,
    "cond_in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 4,
    "joint_attention_dim": 16,
    "timestep_channels": 16,
    "axes_dims_rope": (4, 4, 4, 4),
}
_HIDREAM = _HEADS | {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 3,
    "caption_channels": [16, 16],
    "text_emb_dim": 8,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "axes_dims_rope": (4, 6, 6),
    "max_resolution": (8, 8),
    "llama_layers": [0, 1, 1, 0, 1],
}
_QWEN21 = _HEADS | {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 4,
    "context_in_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
_SANA = _HEADS | {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 8,
}


def _packed(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "timestep": p.times(),
        "img_ids": ids(1, 4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def _chroma(p: Images) -> dict[str, Any]:
    image = torch.ones(len(p.seeds), 16, dtype=torch.bool)
    return _packed(p) | {"attention_mask": torch.cat([p.mask(6), image], dim=1)}


def _qwen21(p: Images) -> dict[str, Any]:
    slots = torch.tensor([False] * 6 + [True] * 4).expand(len(p.seeds), -1)  # of the encoder: one for every four tokens
    return {
        "hidden_states": p.latents(16, 16),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_hidden_states_mask": p.mask(6),
        "timestep": p.times(),
        "img_shapes": [[(1, 4, 4)]] * len(p.seeds),
        "img_mask": slots,
    }


def _qwen21_reference(p: Images) -> dict[str, Any]:
    slots = torch.tensor([False] * 4 + [True] * 2 + [False] * 2 + [True] * 4).expand(len(p.seeds), -1)
    return _qwen21(p) | {
        "hidden_states": torch.cat([p.fixed(8, 16, salt=2), p.latents(16, 16)], dim=1),
        "encoder_hidden_states": p.fixed(8, 16, salt=1),
        "encoder_hidden_states_mask": p.mask(8),
        "img_shapes": [[(1, 2, 4), (1, 4, 4)]] * len(p.seeds),
        "img_mask": slots,
    }


def _masked(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(),
    }


def _sana(p: Images) -> dict[str, Any]:
    return _masked(p) | {"hidden_states": p.latents(4, 4, 4), "timestep": p.times(1000)}


def _flux3(p: Images) -> dict[str, Any]:
    return _packed(p) | {"img_ids": ids(1, 4, 4, 1), "txt_ids": ids(1, 1, 1, 6)}


def _flux3_reference(p: Images) -> dict[str, Any]:
    return _flux3(p) | {"image_cond_hidden_states": p.fixed(8, 8, salt=2), "image_cond_ids": ids(1, 2, 4, 1)}


def _ernie(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 4, 4),
        "timestep": p.times(1000),
        "text_bth": p.fixed(6, 16, salt=1),
        "text_lens": torch.tensor([6 - seed % 3 for seed in p.seeds]),
    }


def _krea2(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(16, 8),
        "encoder_hidden_states": p.fixed(6, 2, 16, salt=1),
        "encoder_attention_mask": p.mask(6),
        "timestep": p.times(),
        "position_ids": torch.cat([torch.zeros(6, 3), ids(1, 4, 4)]),
    }


def _ideogram4(p: Images) -> dict[str, Any]:
    count, text = len(p.seeds), p.mask(6, torch.long)
    image = torch.ones(count, 16, dtype=torch.long)
    positions = torch.cat([torch.zeros(6, 3), 100 + ids(1, 4, 4)])
    return {
        "hidden_states": torch.cat([torch.zeros(count, 6, 8), p.latents(16, 8)], dim=1),
        "timestep": p.times(),
        "encoder_hidden_states": p.fixed(22, 16, salt=1),
        "position_ids": positions.long().expand(count, -1, -1),
        "segment_ids": torch.cat([text, image], dim=1),  # padding is a separate segment
        "indicator": torch.cat([4 * text - 1, 2 * image], dim=1),  # 3 = text, 2 = image, -1 = padding
    }


def _hidream(p: Images) -> dict[str, Any]:
    return {
        "hidden_states": p.latents(4, 8, 8),
        "timesteps": p.times(1000),
        "encoder_hidden_states_t5": p.fixed(6, 16, salt=1),
        "encoder_hidden_states_llama3": [p.fixed(6, 16, salt=salt) for salt in (2, 3)],
        "pooled_embeds": p.fixed(8, salt=4),
    }


def _glm(p: Images) -> dict[str, Any]:
    size = torch.tensor([[64.0, 64.0]] * len(p.seeds))
    return {
        "hidden_states": p.latents(4, 8, 8),
        "encoder_hidden_states": p.fixed(6, 16, salt=1),
        "prior_token_id": (p.fixed(16, salt=2).abs() * 7).long() % 16,
        "prior_token_drop": torch.zeros(len(p.seeds), 16, dtype=torch.bool),
        "timestep": p.times(1000).long(),
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
        "attention_mask": p.mask(6, torch.float32),
    }


TINY: dict[str, Tiny] = {
    # diffusers' gradient checkpointing drops the mask.
    "ChromaTransformer2DModel": Tiny(_CHROMA, _packed),
    "ChromaTransformer2DModel+masked": Tiny(_CHROMA, _chroma),
    "QwenImage21Transformer2DModel": Tiny(_QWEN21, _qwen21),
    "QwenImage21Transformer2DModel+reference": Tiny(_QWEN21, _qwen21_reference),
    "QwenImage21Transformer2DModel+one_timestep": Tiny(_QWEN21 | {"causal_condition": False}, _qwen21),
    "Lumina2Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 4,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 16,
        },
        _masked,
    ),
    "SanaTransformer2DModel": Tiny(_SANA, _sana),
    "SanaTransformer2DModel+sprint": Tiny(
        _SANA | {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
        lambda p: _sana(p) | {"timestep": p.times(), "guidance": p.times(4.0)},
    ),
    "Flux3Transformer2DModel": Tiny(_FLUX3, _flux3),
    "Flux3Transformer2DModel+reference": Tiny(_FLUX3, _flux3_reference),
    "Flux3Transformer2DModel+distilled": Tiny(
        _FLUX3 | {"flow_map": True}, lambda p: _flux3(p) | {"target_timestep": p.times(0.5)}
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 4,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        _ernie,
    ),
    "HiDreamImageTransformer2DModel": Tiny(_HIDREAM, _hidream),
    "HiDreamImageTransformer2DModel+wide": Tiny(
        _HIDREAM, lambda p: _hidream(p) | {"hidden_states": p.latents(4, 4, 8)}
    ),
    "GlmImageTransformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 16,
        },
        _glm,
    ),
    "OvisImageTransformer2DModel": Tiny(_PACKED | _STACKS | {"out_channels": 8}, _packed),
    "LongCatImageTransformer2DModel": Tiny(_PACKED | _STACKS, _packed),
    "Krea2Transformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 8,
            "num_layers": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 16,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
        _krea2,
    ),
    "Ideogram4Transformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 8,
            "num_layers": 4,
            "intermediate_size": 32,
            "adaln_dim": 8,
            "llm_features_dim": 16,
            "rope_theta": 10000,
            "mrope_section": (4, 2, 2),
        },
        _ideogram4,
    ),
}
