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
    """Wan 2.1 and 2.2, text to video: with two transformers, one for noisy steps; guided in calls of its own."""

    called = "Wan"
    transformer = "WanTransformer3DModel"
    frame_step, fps, cfg_calls = 4, 16.0, True
    quantized = ("blocks",)
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "WanPipeline"}

    def side_with(self, vae: Mapping[str, Any]) -> int:
        """The VAE of Wan 2.2 TI2V shrinks by 16, the others' by 8; tokens are of 2x2 latents."""
        return 2 * int(vae.get("scale_factor_spatial", 8))


class WanImageFamily(WanFamily):
    """Wan, from a first frame."""

    called = "Wan image to video"
    tasks: ClassVar[Mapping[Task, str]] = {"image-to-video": "WanImageToVideoPipeline"}
    max_inputs, picture_by_row, repeats = 1, False, True  # of Wan 2.1 the picture's embeddings count prompts


class LTXFamily(VideoFamily):
    """LTX-Video: a VAE that shrinks by 32, and time by 8."""

    called = "LTX-Video"
    transformer = "LTXVideoTransformer3DModel"
    token_side, frame_step, fps, text = 32, 8, 25.0, 128
    tasks: ClassVar[Mapping[Task, str]] = {
        "text-to-video": "LTXPipeline",
        "image-to-video": "LTXImageToVideoPipeline",
    }
    max_inputs = 1


class LTX2Family(VideoFamily):
    """LTX-2: image and sound together.

    Its further kinds of guidance, in calls that leave blocks out or keep image and sound apart, are off.
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
        """What the vocoder made."""
        waves = returned[1][0].float().cpu().numpy()  # [channels, samples]
        return Sound(np.nan_to_num(waves.T).clip(-1, 1), int(pipe.vocoder.config.output_sampling_rate))


class HunyuanVideo15Family(VideoFamily):
    """HunyuanVideo 1.5, text to video. Its guidance belongs to the model's ``guider``, and no request names it."""

    called = "HunyuanVideo 1.5"
    transformer = "HunyuanVideo15Transformer3DModel"
    frame_step, fps, cfg_calls, repeats = 4, 24.0, True, True
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "HunyuanVideo15Pipeline"}


class CogVideoXFamily(VideoFamily):
    """CogVideoX; its VAE decodes two latent frames at a time, and the first alone."""

    called = "CogVideoX"
    transformer = "CogVideoXTransformer3DModel"
    frame_step, fps, text, repeats = 8, 8.0, 226, True
    tasks: ClassVar[Mapping[Task, str]] = {"text-to-video": "CogVideoXPipeline"}
