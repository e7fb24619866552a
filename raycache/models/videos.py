"""Families of videos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from raycache.models.family import VideoFamily
from raycache.protocol.capabilities import Task
from raycache.protocol.sound import Sound

__all__ = ["CogVideoXFamily", "HunyuanVideo15Family", "LTX2Family", "LTXFamily", "WanFamily", "WanImageFamily"]


class WanFamily(VideoFamily):
    """Wan 2.1 and 2.2, text to video: with two transformers, one for noisy steps; guidance by separate calls."""

    called = "Wan"
    transformer = "WanTransformer3DModel"
    frame_step, fps, cfg_calls = 4, 16.0, True
    quantized = ("blocks",)
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "WanPipeline"}

    def side_with(self, vae: Mapping[str, Any]) -> int:
        """The VAE of Wan 2.2 TI2V downscales by 16, the others' by 8; a token is 2x2 latents."""
        return 2 * int(vae.get("scale_factor_spatial", 8))


class WanImageFamily(WanFamily):
    """Wan, from a first frame."""

    called = "Wan image to video"
    tasks: ClassVar[Mapping[Task, str]] = {"image-to-video": "WanImageToVideoPipeline"}
    max_inputs, image_by_row, repeats = 1, False, True  # in Wan 2.1 there is one image embedding per prompt


class LTXFamily(VideoFamily):
    """LTX-Video: a VAE that downscales by 32, and time by 8."""

    called = "LTX-Video"
    transformer = "LTXVideoTransformer3DModel"
    token_side, frame_step, fps, text = 32, 8, 25.0, 128
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-video": "LTXPipeline",
        "image-to-video": "LTXImageToVideoPipeline",
    }
    max_inputs = 1


class LTX2Family(VideoFamily):
    """LTX-2: video and sound together.

    Its other kinds of guidance, by calls that skip blocks or separate video and sound, are off.
    """

    called = "LTX-2"
    transformer = "LTX2VideoTransformer3DModel"
    token_side, frame_step, fps, text = 32, 8, 24.0, 1024
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "LTX2Pipeline"}
    fixed: ClassVar[Mapping[str, Any]] = {
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
    }

    def sound(self, pipe: Any, returned: Any) -> Sound | None:
        """The output of the vocoder."""
        waves = returned[1][0].float().cpu().numpy()  # [channels, samples]
        return Sound(np.nan_to_num(waves.T).clip(-1, 1), int(pipe.vocoder.config.output_sampling_rate))


class HunyuanVideo15Family(VideoFamily):
    """HunyuanVideo 1.5, text to video. Its guidance is set in the model's ``guider``; requests cannot change it."""

    called = "HunyuanVideo 1.5"
    transformer = "HunyuanVideo15Transformer3DModel"
    frame_step, fps, cfg_calls, repeats = 4, 24.0, True, True
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "HunyuanVideo15Pipeline"}


class CogVideoXFamily(VideoFamily):
    """CogVideoX; its VAE decodes two latent frames at a time, the first one alone."""

    called = "CogVideoX"
    transformer = "CogVideoXTransformer3DModel"
    frame_step, fps, text, repeats = 8, 8.0, 226, True
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "CogVideoXPipeline"}
