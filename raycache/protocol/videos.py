"""Video requests: OpenAI's videos API plus our own fields, the same for HTTP and Python handles."""

from __future__ import annotations

import math
from typing import Any, Self, cast

import numpy as np
from pydantic import ConfigDict, Field, SkipValidation, field_validator

from raycache.limits import LimitSettings
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import invalid
from raycache.protocol.input_images import ImageSource, as_image
from raycache.protocol.job import JobInputs
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.tasks import nearest_frames

__all__ = ["VideoFields", "VideoRequest"]

#: Seconds of a video without `seconds` and `num_frames`, as in OpenAI's API; fewer if the limit is lower.
_SECONDS = 4.0


class VideoFields(GenerationRequest):
    """The fields of every video request."""

    n: int = Field(default=1, ge=1, le=1, description="One video per request.")
    seconds: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Length in seconds; 4 if `num_frames` is not given either.",
    )
    num_frames: int | None = Field(default=None, ge=1, description="Frames, in place of `seconds`.")
    fps: float | None = Field(
        default=None,
        gt=0,
        le=120,
        allow_inf_nan=False,
        description="Frames per second; default: those of the model's training.",
    )

    @field_validator("seconds", mode="before")
    @classmethod
    def _as_number(cls, value: Any) -> Any:
        """OpenAI's clients send a string: ``"4"``."""
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    def frames_a_second(self, model: Capabilities) -> float:
        """Frames per second of the video file."""
        return self.fps or model.fps

    def fitted(self, model: Capabilities, limits: LimitSettings) -> Self:
        """This request with a number of frames and frames per second that ``model`` supports.

        Raises:
            RequestError: 400 for ``seconds`` together with ``num_frames``, or for more frames than are allowed.
        """
        if not model.frame_step:
            return self  # makes no videos; the check of the task reports that
        fps = self.frames_a_second(model)
        if self.num_frames is not None:
            if self.seconds is not None:
                raise invalid("seconds", "`num_frames` also sets the length; give one of them")
            return self.model_copy(update={"fps": fps})
        most = (limits.max_frames - 1) // model.frame_step * model.frame_step + 1
        seconds = self.seconds if self.seconds is not None else min(_SECONDS, most / fps)
        if (frames := round(seconds * fps)) > limits.max_frames:
            reason = f"{seconds:g} s at {fps:g} frames a second are {frames} frames, more than {limits.max_frames}"
            raise invalid("seconds", reason, [f"{math.floor(100 * most / fps) / 100:g}"])
        return self.model_copy(update={"fps": fps, "num_frames": nearest_frames(frames, model.frame_step, most)[0]})


class VideoRequest(VideoFields):
    """One request for a video, as long as ``num_frames``, or as close to ``seconds`` as the model can.

    With ``input_reference`` it starts with that image. A file is read and decoded when the request is made.

    Raises:
        RequestError: 400: the image cannot be read.
        OSError: its file cannot be read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    input_reference: SkipValidation[ImageSource | None] = Field(
        default=None, repr=False, description="The image that the video starts with."
    )

    @field_validator("input_reference", mode="before")
    @classmethod
    def _image(cls, value: Any) -> np.ndarray | None:
        return None if value is None else as_image(value, "input_reference")

    def inputs(self) -> JobInputs:
        """A number of frames, which :meth:`fitted` has set, and the image that the video starts with."""
        frames = self.num_frames or 1
        if self.input_reference is None:
            return JobInputs("text-to-video", num_frames=frames)
        return JobInputs("image-to-video", images=(cast(np.ndarray, self.input_reference),), num_frames=frames)
