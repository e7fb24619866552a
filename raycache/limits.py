"""Limits of requests, and defaults of what they leave out: `limits` and `defaults` in the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycache.size import Size
from raycache.strict import Strict

__all__ = ["MOST_UPLOAD", "PRIORITIES", "DefaultSettings", "KeySettings", "LimitSettings", "Priority"]

#: Maximum bytes of a body with images in Serve's proxy, which does not know the settings.
MOST_UPLOAD = 64 << 20

Priority = Literal["low", "normal", "high"]
#: Weight of a request by its priority. A caller has an account for each, so its own requests compete by priority, too.
PRIORITIES: dict[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}


class KeySettings(Strict):
    """The weight and the highest priority of one key's requests."""

    weight: float = Field(
        default=1.0,
        ge=0.01,
        le=100,
        description="Its share of an engine's time: a key of weight 2 gets twice that of a key of weight 1.",
    )
    max_priority: Priority = Field(default="normal", description="The highest `priority` that its requests may set.")


class LimitSettings(Strict):
    """Limits of one request, or of one key. Anything above is answered 4xx before a GPU is used."""

    max_pixels: int = Field(
        default=2048 * 2048, ge=256, description="Maximum number of pixels of one image (width x height)."
    )
    max_steps: int = Field(default=100, ge=1, description="Maximum `num_inference_steps`.")
    max_images: int = Field(default=4, ge=1, le=64, description="Maximum `n` (images per request).")
    max_frames: int = Field(default=161, ge=1, description="Maximum number of frames of a video.")
    max_prompt_characters: int = Field(default=4000, ge=1, description="Maximum number of characters of `prompt`.")
    max_job_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Maximum predicted seconds of one job by itself; null = `max_queued_seconds`.",
    )
    max_timeout_s: float = Field(
        default=3600.0, gt=0, description="Maximum `timeout_s` of a request; `request_timeout_s`, if that is larger."
    )
    max_jobs_per_key: int | None = Field(
        default=None,
        ge=1,
        description="Jobs that one key may have in one engine, waiting or running; null = any number.",
    )
    max_queued_seconds_per_key: float | None = Field(
        default=None, gt=0, description="Predicted seconds of work that one key may have in one engine; null = any."
    )
    keys: dict[str, KeySettings] = Field(
        default_factory=dict,
        description="The `weight` (1) and `max_priority` (`normal`) of a key, by its public name.",
    )
    max_body_bytes: int = Field(
        default=1 << 20, ge=1024, description="Maximum number of bytes of an HTTP request body."
    )
    max_upload_bytes: int = Field(
        default=32 << 20, ge=1024, le=MOST_UPLOAD, description="The same for a body that carries images."
    )
    max_input_bytes: int = Field(
        default=16 << 20, ge=64, description="Maximum number of bytes of the file of one input image."
    )
    max_input_pixels: int = Field(
        default=4096 * 4096, ge=1, description="Maximum number of pixels of one input image (width x height)."
    )

    def of_key(self, key: str | None) -> KeySettings:
        """The settings of a key. None: no keys are required, or a Python handle; any priority may be set."""
        if key is None:
            return KeySettings(max_priority="high")
        return self.keys.get(key, KeySettings())


class DefaultSettings(Strict):
    """Values of the fields that a request leaves out."""

    size: Size = Field(default=Size(1024, 1024), description="`WIDTHxHEIGHT` in pixels.")
    num_inference_steps: int = Field(default=28, ge=1, description="Denoising steps.")
    guidance_scale: float = Field(default=3.5, ge=0, le=100, description="How closely to follow the prompt.")
    negative_prompt: str = Field(default="", description="What to avoid; for models that take one.")
    true_cfg_scale: float = Field(
        default=1.0,
        ge=1,
        le=100,
        description="Guidance by the negative prompt, for models whose own guidance is embedded.",
    )
