"""Small inputs for every transformer class that can be split, from its config: one image, a few tokens per rank.

A rank has 4 image tokens and 2 text tokens, as far as the class permits. Where pipelines pass a mask of the text, its
last token is masked. Classes of 2026 are in :mod:`raycache.worker.split_newer_inputs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from raycache.worker.split_newer_inputs import NEWER
from raycache.worker.split_source import Inputs, Source, image_and_text, masked_text, places, time, video

__all__ = ["INPUTS"]


def _bria(s: Source) -> Inputs:
    return image_and_text(s) | places(s, 3) | {"timestep": time(500.0)}


def _cogvideox(s: Source) -> Inputs:
    config = s.config
    frames, text = 2 * (config.patch_size_t or 1), s.text
    rows, columns = s.ranks * config.patch_size, 2 * config.patch_size  # ParaAttention splits the rows
    if config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings:
        text = config.max_text_seq_length  # positions are added to text and image as one sequence
    if config.use_learned_positional_embeddings:  # learned for videos of one size
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        rows, columns = config.sample_height, config.sample_width
    latents = s.normal(1, frames, config.in_channels, rows, columns)
    inputs: Inputs = {"hidden_states": latents, "timestep": time(500.0)}
    if config.use_rotary_positional_embeddings:
        tokens = frames // (config.patch_size_t or 1) * rows * columns // config.patch_size**2
        angles = s.normal(tokens, config.attention_head_dim // 2).repeat_interleave(2, -1)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    if config.ofs_embed_dim:
        inputs["ofs"] = torch.tensor([2.0])
    return inputs | {"encoder_hidden_states": s.states(config.text_embed_dim, text)}


def _flux(s: Source) -> Inputs:
    pooled = s.normal(1, s.config.pooled_projection_dim)
    times = {"timestep": time(0.5)} | s.guidance(3.5)
    return image_and_text(s) | places(s, 3) | times | {"pooled_projections": pooled}


def _flux2(s: Source) -> Inputs:
    ids = {name: grid[None] for name, grid in places(s, 4).items()}
    return image_and_text(s) | ids | {"timestep": time(0.5)} | s.guidance(4.0)


def _hunyuan_image(s: Source) -> Inputs:
    config = s.config
    *frames, rows, columns = (2, 2, s.ranks) if len(config.patch_size) == 3 else (2, 2 * s.ranks)
    sizes = (size * patch for size, patch in zip((*frames, rows, columns), config.patch_size, strict=True))
    inputs = {"hidden_states": s.normal(1, config.in_channels, *sizes), "timestep": time(500.0)}
    inputs |= masked_text(s, config.text_embed_dim) | s.guidance(3500.0)
    if config.use_meanflow:
        inputs["timestep_r"] = time(400.0)
    if config.text_embed_2_dim:
        second = masked_text(s, config.text_embed_2_dim)
        inputs |= {f"{name}_2": value for name, value in second.items()}
    return inputs


def _hunyuan_video(s: Source) -> Inputs:
    config = s.config
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    pooled = {"pooled_projections": s.normal(1, config.pooled_projection_dim), "timestep": time(500.0)}
    return video(s, patch) | masked_text(s, config.text_embed_dim) | pooled | s.guidance(6000.0)


def _ltx(s: Source) -> Inputs:
    sizes = {"num_frames": 2, "height": 2, "width": s.ranks}
    latents = s.normal(1, math.prod(sizes.values()), s.config.in_channels)
    return masked_text(s, s.config.caption_channels) | sizes | {"hidden_states": latents, "timestep": time(500.0)}


def _mochi(s: Source) -> Inputs:
    patch = (1, s.config.patch_size, s.config.patch_size)
    return video(s, patch) | masked_text(s, s.config.text_embed_dim) | {"timestep": time(500.0)}


def _qwen_image(s: Source) -> Inputs:
    config, inputs = s.config, image_and_text(s)
    whole, half = (1, 2, 2 * s.ranks), (1, 2, s.ranks)
    several = config.zero_cond_t or config.use_layer3d_rope  # made for an image and its reference images
    inputs |= {"img_shapes": [[half, half] if several else [whole]], "timestep": time(0.5)}
    if config.use_additional_t_cond:
        inputs["additional_t_cond"] = torch.tensor([0])
    return inputs | {"encoder_hidden_states_mask": s.mask()}


def _sd3(s: Source) -> Inputs:
    config = s.config
    latents = s.normal(1, config.in_channels, 2 * config.patch_size, 2 * s.ranks * config.patch_size)
    text = {"encoder_hidden_states": s.states(config.joint_attention_dim)}
    return text | {
        "hidden_states": latents,
        "pooled_projections": s.normal(1, config.pooled_projection_dim),
        "timestep": time(500.0),
    }


def _wan(s: Source) -> Inputs:
    config, text = s.config, s.text
    inputs = video(s, config.patch_size) | {"timestep": time(500.0)}
    if config.added_kv_proj_dim:
        text = 512  # tokens before the last 512 belong to the image
    if config.image_dim and config.pos_embed_seq_len:  # two images, as two rows
        inputs["encoder_hidden_states_image"] = s.normal(2, config.pos_embed_seq_len // 2, config.image_dim)
    elif config.image_dim:
        inputs["encoder_hidden_states_image"] = s.normal(1, 257, config.image_dim)
    return inputs | {"encoder_hidden_states": s.states(config.text_dim, text)}


def _wan_vace(s: Source) -> Inputs:
    inputs = _wan(s)
    sizes = inputs["hidden_states"].shape[2:]
    return inputs | {"control_hidden_states": s.normal(1, s.config.vace_in_channels, *sizes)}


def _z_image(s: Source) -> Inputs:
    """Image and text are padded to 32 tokens each by the transformer itself."""
    config, patch = s.config, (2, 2)
    latents = s.normal(config.in_channels, 1, 2 * patch[0], 2 * s.ranks * patch[1])
    return {"x": [latents], "cap_feats": [s.normal(s.text, config.cap_feat_dim)], "t": time(0.5)}


#: By the class name of the transformer: makes the arguments of its forward.
INPUTS: dict[str, Callable[[Source], Inputs]] = {
    "BriaTransformer2DModel": _bria,
    "CogVideoXTransformer3DModel": _cogvideox,
    "Flux2Transformer2DModel": _flux2,
    "FluxTransformer2DModel": _flux,
    "HunyuanImageTransformer2DModel": _hunyuan_image,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "LTXVideoTransformer3DModel": _ltx,
    "MochiTransformer3DModel": _mochi,
    "QwenImageTransformer2DModel": _qwen_image,
    "SD3Transformer2DModel": _sd3,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan_vace,
    "ZImageTransformer2DModel": _z_image,
}
INPUTS |= NEWER
