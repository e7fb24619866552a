"""Variants of tiny transformers: configs that checkpoints of one class may have."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import nn

from tests.helpers.tiny_transformers import TINY

#: Variants of classes that can be split: name, what differs in the config, and an argument that it then needs.
FORMS: list[tuple[str, dict[str, Any], str]] = [
    ("FluxTransformer2DModel", {"guidance_embeds": True}, "guidance"),
    ("Flux2Transformer2DModel", {"guidance_embeds": False}, ""),
    ("QwenImageTransformer2DModel", {"zero_cond_t": True}, ""),
    ("QwenImageTransformer2DModel", {"use_layer3d_rope": True, "use_additional_t_cond": True}, "additional_t_cond"),
    ("WanTransformer3DModel", {"image_dim": 8, "added_kv_proj_dim": 32}, "encoder_hidden_states_image"),
    (
        "WanTransformer3DModel",
        {"image_dim": 8, "added_kv_proj_dim": 32, "pos_embed_seq_len": 514},
        "encoder_hidden_states_image",
    ),
    ("HunyuanVideoTransformer3DModel", {"guidance_embeds": False}, ""),
    ("HunyuanVideoTransformer3DModel", {"image_condition_type": "latent_concat"}, ""),
    ("HunyuanImageTransformer2DModel", {"guidance_embeds": True, "text_embed_2_dim": 8}, "encoder_hidden_states_2"),
    ("HunyuanImageTransformer2DModel", {"use_meanflow": True, "guidance_embeds": True}, "timestep_r"),
    ("CogVideoXTransformer3DModel", {"use_rotary_positional_embeddings": True}, "image_rotary_emb"),
    (
        "CogVideoXTransformer3DModel",
        {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
        "image_rotary_emb",
    ),
    ("CogVideoXTransformer3DModel", {"use_rotary_positional_embeddings": True, "ofs_embed_dim": 8}, "ofs"),
    (
        "CogVideoXTransformer3DModel",
        {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
        "image_rotary_emb",
    ),
]


def other_form(name: str, config: dict[str, Any]) -> nn.Module:
    """The tiny transformer of class ``name`` with ``config`` overriding its own."""
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, name)(**TINY[name].config | config)
    return model.eval().requires_grad_(False)
