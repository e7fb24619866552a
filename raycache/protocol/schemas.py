"""Requests and replies, the same for HTTP and Python handles: OpenAI's images API plus our own fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from cache_core.options import CacheOptions
from raycache.limits import LimitSettings, Priority
from raycache.policy import Policy
from raycache.presets import Quality
from raycache.presets.auto import AnyCache
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import TEXT_ONLY, JobInputs
from raycache.protocol.lora import LoraChoice, LoraRequest
from raycache.protocol.sound import Sound
from raycache.size import Size

#: By field: the value of a request without it, and the lowest legal value.
_LEFT_OUT: dict[str, tuple[str, float]] = {
    "seed": ("a random seed", 0),
    "num_inference_steps": ("this server's default", 1),
    "guidance_scale": ("this server's default", 0),
    "timeout_s": ("this server's default", 1),
}


class GenerationRequest(BaseModel):
    """One request for ``n`` images. Fields that are None take the deployment's defaults.

    This model checks only what does not depend on the deployment; :mod:`raycache.protocol.resolve` checks the rest
    (limits, divisibility, options against the model's blocks) before a GPU is used.
    """

    model_config = ConfigDict(extra="forbid")

    # No repr: nothing that prints a request, log lines above all, may print what the user wrote.
    prompt: str = Field(min_length=1, repr=False, description="What to draw.")
    model: str | None = Field(
        default=None, description="Name or alias of a model of this service; null = its default model."
    )
    n: int = Field(default=1, ge=1, description="Number of images.")
    size: str | None = Field(default=None, description="`WIDTHxHEIGHT` in pixels, or `auto`.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="Image k of a request is generated from seed + k."
    )
    num_inference_steps: int | None = Field(default=None, ge=1, description="Denoising steps, as in diffusers.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="How closely to follow the prompt, as in diffusers.",
    )
    negative_prompt: str | None = Field(
        default=None, repr=False, description="What to avoid; for models that take one."
    )
    true_cfg_scale: float | None = Field(
        default=None,
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="How far to guide away from `negative_prompt`, for models whose `guidance_scale` is embedded; "
        "above 1 each step takes twice as long.",
    )
    quality: Quality = Field(
        default="auto",
        description="A preset of the model: `exact` (no cache), `high`, `balanced` or `fast`; OpenAI's values take the "
        "nearest; `auto` = the deployment's default. `cache` takes precedence.",
    )
    cache: AnyCache | None = Field(
        default=None,
        description='Options of a cache method, `{"type": "none"}` for none, or a goal, `{"type": "auto", '
        '"target_psnr": 35}` in dB or `{"type": "auto", "speedup": 2}`; null = those of `quality`.',
    )
    lora: LoraRequest | None = Field(
        default=None, description="One of this model's LoRAs, `{name, scale}` or its name; null = none."
    )
    response_format: Literal["b64_json"] = Field(
        default="b64_json", description="`url` is refused: this server keeps no files that a URL could name."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field(default="png", description="File format of the images.")
    output_compression: int = Field(default=100, ge=0, le=100, description="Quality of jpeg and webp, in percent.")
    timeout_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Deadline, seconds from arrival."
    )
    priority: Priority = Field(
        default="normal",
        description="`high` gets four times the time of `normal`, and `low` a quarter, while other requests run; "
        "a key may be limited to less.",
    )
    partial_images: int = Field(default=0, ge=0, le=3, description="Previews sent by a streaming call.")
    user: str | None = Field(default=None, description="Accepted and ignored.")

    def inputs(self) -> JobInputs:
        """The job's inputs other than its prompt; requests of other tasks have more."""
        return TEXT_ONLY

    def fitted(self, model: Capabilities, limits: LimitSettings) -> GenerationRequest:
        """This request with values that ``model`` supports: a video request gets a number of frames."""
        return self

    def frames_a_second(self, model: Capabilities) -> float:
        """Frames per second of the video; 0 for images."""
        return 0.0

    @field_validator(*_LEFT_OUT, mode="before")
    @classmethod
    def _chosen_here(cls, value: Any, info: ValidationInfo) -> Any:
        """In other APIs -1 means "choose for me"."""
        if isinstance(value, int | float) and value < 0:
            assert info.field_name is not None  # a field's validator has a field
            means, least = _LEFT_OUT[info.field_name]
            reason = f"must not be negative; leave the field out for {means}"
            raise PydanticCustomError("negative", reason, {"ge": least})
        return value


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """All that determines the images, checked and without None; made by :func:`raycache.protocol.resolve.resolve`.

    Attributes:
        seed: of the first image; image k is generated from seed + k.
        quality: the requested preset; ``auto`` if ``cache`` was given.
        timeout_s: seconds from arrival.
        partial_images: previews that a streaming call gets.
        inputs: images and other inputs of the task.
        fps: frames per second of a video; 0 for images.
        calls_per_step: calls of the transformer per step.
        lora: the LoRA that is used, or None.
    """

    prompt: str = field(repr=False)
    model: str
    n: int
    size: Size
    seed: int
    num_inference_steps: int
    guidance_scale: float
    quality: Quality
    cache: CacheOptions
    timeout_s: float
    priority: Priority
    partial_images: int
    negative_prompt: str = field(default="", repr=False)
    true_cfg_scale: float = 1.0
    inputs: JobInputs = TEXT_ONLY
    fps: float = 0.0
    calls_per_step: int = 1
    lora: LoraChoice | None = None


class StageTimes(BaseModel):
    """Seconds that a request spent in each stage; ``queue`` is all waiting, also during the turns of other jobs."""

    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0


class GenerationResult(BaseModel):
    """What a handle call returns.

    Attributes:
        images: uint8 arrays of shape [height, width, 3], RGB; for a video [frames, height, width, 3].
        seeds: the seed each image was generated from.
        report: decisions of the cache, ``CacheReport.to_dict()``; None if the request asked for no cache.
        times: seconds per stage.
        warnings: unusual but legal conditions, for the user to read.
        fps: frames per second of a video; 0 for images.
        sound: sound of the first video, if the model generates any.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    images: list[SkipValidation[np.ndarray]] = Field(repr=False)
    seeds: list[int]
    report: dict[str, Any] | None = None
    times: StageTimes = StageTimes()
    warnings: list[str] = Field(default_factory=list)
    fps: float = 0.0
    sound: SkipValidation[Sound | None] = Field(default=None, repr=False)

    def save(self, path: str) -> None:
        """Write the first image to ``path``, whose suffix sets the format; or the first video, as MP4."""
        if self.fps:
            from raycache.protocol.video_files import write_video

            write_video(Path(path), self.images[0], self.fps, sound=self.sound)
            return
        from PIL import Image

        Image.fromarray(self.images[0]).save(path)


@dataclass(frozen=True)
class ProgressEvent:
    """One denoising step has finished. Sent by streaming calls.

    Attributes:
        step: number of finished steps, from 1.
        steps: total number of steps.
        cached: per image, whether the step reused the cache; empty when the request asked for no cache.
        residual_diff: per image, the difference that was compared; None if none was.
        seconds_left: estimate until the image is ready; None before the engine knows.
    """

    step: int
    steps: int
    cached: list[bool]
    residual_diff: list[float | None]
    seconds_left: float | None = None


@dataclass(frozen=True)
class PreviewEvent:
    """A preview of the unfinished images.

    Attributes:
        index: 0-based number of the preview.
        images: uint8 arrays of shape [height, width, 3], possibly smaller than the image.
    """

    index: int
    images: list[np.ndarray] = field(repr=False)


@dataclass(frozen=True)
class QueuedEvent:
    """An engine has admitted the job to its queue. Sent only over HTTP, so that the status is sent before any step.

    Sent again whenever its place in the queue changes.

    Attributes:
        ahead: predicted number of jobs that will start before it; None before an engine has admitted it.
        seconds_left: estimate until the image is ready; None before the engine knows.
    """

    ahead: int | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class EngineStatus:
    """The status that one engine replica reports.

    Attributes:
        replica: Serve's id of the replica; ``pid`` its process.
        ready: a warm gang without faults serves.
        queued: jobs admitted and not yet started.
        running: the ranks have at least one job.
        predicted_queue_s: predicted seconds by which others delay a job that arrives now.
        gang: the status of the gang: running jobs, ranks with their steps, restarts, faults.
        model: the loaded model; requests name it ``model_name``.
        policy: limits and defaults in force.
        user_config_refused: why the last ``user_config`` is not in force; None if it is.
        start_s: seconds from start to ready, which another engine would take, too.
        told_at: ``time.time()`` of this status; the ingress may return one that is a second old.
    """

    replica: str
    ready: bool
    queued: int
    running: bool
    predicted_queue_s: float
    gang: dict[str, Any]
    model: Capabilities
    policy: Policy
    pid: int = 0
    told_at: float = 0.0
    start_s: float = 0.0
    user_config_refused: str | None = None
    model_name: str = ""
