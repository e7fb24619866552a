"""Tiny random versions of every supported transformer, of their real diffusers classes."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch

from tests.helpers import conditioned_images, tiny_images, tiny_other_images, tiny_other_videos, tiny_videos
from tests.helpers.conditioned_images import Images, Tiny


def build(name: str, **other: Any) -> torch.nn.Module:
    """The tiny transformer of class ``name``, with weights large enough that each block changes its input.

    Args:
        other: overrides of its config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, name.partition("+")[0])(**TINY[name].config | other).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@functools.cache
def shared(name: str) -> torch.nn.Module:
    """As :func:`build`, one for all tests that leave it as it is."""
    return build(name)


def call(model: torch.nn.Module, name: str, images: Images) -> torch.Tensor:
    """One step; the prediction as one tensor with a row per image."""
    output = model(**TINY[name].inputs(images))
    if (audio := output.get("audio_sample")) is not None:
        return torch.cat([output.sample.flatten(1), audio.flatten(1)], dim=1)
    return torch.stack(output.sample) if isinstance(output.sample, list) else output.sample


_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_STACKS = {"num_layers": 2, "num_single_layers": 3}
_QWEN = _HEADS | {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 4,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
_WAN = _HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4}
_HUNYUAN_VIDEO = (
    _HEADS
    | _STACKS
    | {
        "in_channels": 4,
        "out_channels": 4,
        "num_refiner_layers": 1,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }
)

TINY: dict[str, Tiny] = {
    "FluxTransformer2DModel": Tiny(
        _HEADS
        | _STACKS
        | {"in_channels": 8, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6)},
        conditioned_images.flux,
    ),
    "Flux2Transformer2DModel": Tiny(
        _HEADS
        | _STACKS
        | {
            "in_channels": 8,
            "joint_attention_dim": 16,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        conditioned_images.flux2,
    ),
    "QwenImageTransformer2DModel": Tiny(
        _QWEN,
        conditioned_images.qwen,
    ),
    "QwenImageTransformer2DModel+reference": Tiny(
        _QWEN | {"zero_cond_t": True},
        lambda p: conditioned_images.qwen(p) | {"img_shapes": [[(1, 2, 4), (1, 2, 4)]] * len(p.seeds)},
    ),
    "WanTransformer3DModel": Tiny(_WAN, conditioned_images.wan),
    "WanTransformer3DModel+timesteps_per_token": Tiny(
        _WAN, lambda p: conditioned_images.wan(p) | {"timestep": p.fixed(32, salt=2).abs() * 1000}
    ),
    "WanVACETransformer3DModel": Tiny(
        _WAN | {"vace_layers": [0, 2], "vace_in_channels": 8},
        lambda p: conditioned_images.wan(p) | {"control_hidden_states": p.fixed(8, 2, 8, 8, salt=3)},
    ),
    "HunyuanVideoTransformer3DModel": Tiny(_HUNYUAN_VIDEO, conditioned_images.hunyuan_video),
    "HunyuanVideoTransformer3DModel+first_frame": Tiny(
        _HUNYUAN_VIDEO | {"image_condition_type": "token_replace"}, conditioned_images.hunyuan_video
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        _HUNYUAN_VIDEO | {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        conditioned_images.framepack,
    ),
    "HunyuanImageTransformer2DModel": Tiny(
        _HEADS
        | _STACKS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (8, 8),
        },
        conditioned_images.hunyuan_image,
    ),
    "CogVideoXTransformer3DModel": Tiny(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 4,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        conditioned_images.cogvideox,
    ),
    "CogView4Transformer2DModel": Tiny(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 8,
            "rope_axes_dim": (8, 8),
        },
        conditioned_images.cogview4,
    ),
    "MochiTransformer3DModel": Tiny(
        _HEADS
        | {
            "num_layers": 4,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": 6,
        },
        conditioned_images.mochi,
    ),
    "LTXVideoTransformer3DModel": Tiny(
        _HEADS
        | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 4, "caption_channels": 16},
        conditioned_images.ltx,
    ),
    "SD3Transformer2DModel": Tiny(
        _HEADS
        | {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0, 1),
        },
        conditioned_images.sd3,
    ),
    "BriaTransformer2DModel": Tiny(
        _HEADS | _STACKS | {"in_channels": 8, "joint_attention_dim": 16, "axes_dims_rope": [4, 6, 6]},
        conditioned_images.bria,
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 4,
            "axes_dims": (4, 6, 6),
        },
        conditioned_images.kandinsky,
    ),
    "MotifVideoTransformer3DModel": Tiny(
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 4,
            "num_decoder_layers": 2,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        conditioned_images.motif,
    ),
    "ZImageTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 4,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 32, 32],
        },
        conditioned_images.z_image,
    ),
    "PixArtTransformer2DModel": Tiny(
        _HEADS
        | {"num_layers": 4, "cross_attention_dim": 32, "sample_size": 8, "caption_channels": 16, "norm_num_groups": 4},
        conditioned_images.pixart,
    ),
    "DiTTransformer2DModel": Tiny(
        _HEADS | {"num_layers": 4, "sample_size": 8, "norm_num_groups": 4, "num_embeds_ada_norm": 1000},
        conditioned_images.dit,
    ),
}
TINY |= tiny_images.TINY | tiny_videos.TINY | tiny_other_images.TINY | tiny_other_videos.TINY
