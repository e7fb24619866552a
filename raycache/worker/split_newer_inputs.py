"""Small inputs for the transformer classes of late 2025 and 2026; see :mod:`raycache.worker.split_inputs`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from raycache.worker.split_source import Inputs, Source, image_and_text, masked_text, places, time, video

__all__ = ["NEWER"]


def _chroma(s: Source) -> Inputs:
    mask = torch.cat([s.mask(), torch.ones(1, 4 * s.ranks)], 1)  # as numbers, like its pipeline
    return _placed(s) | {"attention_mask": mask}


def _ernie(s: Source) -> Inputs:
    config = s.config
    latents = s.normal(1, config.in_channels, 2 * config.patch_size, 2 * s.ranks * config.patch_size)
    text = {"text_bth": s.states(config.text_in_dim), "text_lens": torch.tensor([s.text - 1])}
    return text | {"hidden_states": latents, "timestep": time(500.0)}


def _flux3(s: Source) -> Inputs:
    """With a reference image."""
    inputs = image_and_text(s) | places(s, 4) | {"timestep": time(0.5)}
    grid = torch.zeros(2 * s.ranks, 4)
    grid[:, 0], grid[:, 2] = 10, torch.arange(2.0 * s.ranks)
    inputs |= {"image_cond_hidden_states": s.states(s.config.cond_in_channels), "image_cond_ids": grid}
    return inputs | ({"target_timestep": time(0.4)} if s.config.flow_map else {})


def _hunyuan_video_15(s: Source) -> Inputs:
    config = s.config
    patch = (config.patch_size_t, config.patch_size, config.patch_size)
    inputs = video(s, patch) | masked_text(s, config.text_embed_dim) | {"timestep": time(500.0)}
    inputs |= {f"{name}_2": value for name, value in masked_text(s, config.text_embed_2_dim).items()}
    inputs |= {"timestep_r": time(400.0)} if config.use_meanflow else {}
    return inputs | {"image_embeds": s.states(config.image_embed_dim)}


def _krea2(s: Source) -> Inputs:
    config, grid = s.config, places(s, 3)
    return {
        "hidden_states": s.normal(1, 4 * s.ranks, config.in_channels),
        "encoder_hidden_states": s.normal(1, s.text, config.num_text_layers, config.text_hidden_dim),
        "encoder_attention_mask": s.mask(),
        "timestep": time(0.5),
        "position_ids": torch.cat([grid["txt_ids"], grid["img_ids"]]),
    }


def _ltx2(s: Source) -> Inputs:
    """With a timestep for each video token, as in image-to-video, and an odd number of audio tokens."""
    config, sizes = s.config, {"num_frames": 2, "height": 2, "width": s.ranks}
    tokens, text = math.prod(sizes.values()), (config.cross_attention_dim, config.audio_cross_attention_dim)
    if config.use_prompt_embeddings:
        text = (config.caption_channels, config.caption_channels)
    times = torch.full((1, tokens), 500.0)
    times[:, :2] = 0.0
    inputs = {"hidden_states": s.normal(1, tokens, config.in_channels), "timestep": times}
    inputs |= {"audio_hidden_states": s.normal(1, 3, config.audio_in_channels), "audio_timestep": time(500.0)}
    for name, channels in zip(("", "audio_"), text, strict=True):
        inputs |= {f"{name}{key}": value for key, value in masked_text(s, channels).items()}
    return inputs | sizes | {"audio_num_frames": 3, "sigma": time(500.0)}


def _placed(s: Source) -> Inputs:
    return image_and_text(s) | places(s, 3) | {"timestep": time(0.5)}


def _qwen_image_21(s: Source) -> Inputs:
    """With a reference image of four tokens within the text; the encoder has one slot for four."""
    config, tokens = s.config, 4 + 4 * s.ranks
    slots = torch.tensor([[False, True] + [False] * (s.text - 2) + [True] * s.ranks])
    return {
        "hidden_states": s.normal(1, tokens, config.in_channels * config.patch_size**2),
        "encoder_hidden_states": s.states(config.context_in_dim),
        "encoder_hidden_states_mask": s.mask(),
        "timestep": time(0.5),
        "img_shapes": [[(1, 2, 2), (1, 2, 2 * s.ranks)]],
        "img_mask": slots,
    }


#: By the class name of the transformer: makes the arguments of its forward.
NEWER: dict[str, Callable[[Source], Inputs]] = {
    "ChromaTransformer2DModel": _chroma,
    "ErnieImageTransformer2DModel": _ernie,
    "Flux3Transformer2DModel": _flux3,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video_15,
    "Krea2Transformer2DModel": _krea2,
    "LTX2VideoTransformer3DModel": _ltx2,
    "LongCatImageTransformer2DModel": _placed,
    "OvisImageTransformer2DModel": _placed,
    "QwenImage21Transformer2DModel": _qwen_image_21,
}
