"""What requests may ask, and what they get when they do not say: `limits` and `defaults` in the settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raycache.size import Size
from raycache.strict import Strict

__all__ = ["MOST_UPLOAD", "PRIORITIES", "DefaultSettings", "KeySettings", "LimitSettings", "Priority"]

#: Bytes of a body with pictures that Serve's proxy lets through, where no setting is known.
MOST_UPLOAD = 64 << 20

Priority = Literal["low", "normal", "high"]
#: What a request weighs beside those of others. A caller has an account for each, so its own are set apart, too.
PRIORITIES: dict[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}


class KeySettings(Strict):
    """What the requests of one key are worth beside those of others."""

    weight: float = Field(
        default=1.0, ge=0.01, le=100, description="Its part of an engine's time: 2 gets twice that of a key of 1."
    )
    max_priority: Priority = Field(default="normal", description="The highest `priority` that its requests may name.")


class LimitSettings(Strict):
    """What one request, or one key, may ask. Everything above is answered 4xx before a GPU is touched."""

    max_pixels: int = Field(default=2048 * 2048, ge=256, description="Width x height of one image.")
    max_steps: int = Field(default=100, ge=1, description="`num_inference_steps`.")
    max_images: int = Field(default=4, ge=1, le=64, description="`n`.")
    max_frames: int = Field(default=161, ge=1, description="Frames of a video.")
    max_prompt_characters: int = Field(default=4000, ge=1, description="Characters of `prompt`.")
    max_job_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Predicted seconds of one job by itself; null = `max_queued_seconds`.",
    )
    max_timeout_s: float = Field(
        default=3600.0, gt=0, description="`timeout_s` of a request; `request_timeout_s`, where that is more."
    )
    max_jobs_per_key: int | None = Field(
        default=None,
        ge=1,
        description="Jobs that one key may have in one engine, waiting or under way; null = any number.",
    )
    max_queued_seconds_per_key: float | None = Field(
        default=None, gt=0, description="Predicted seconds of work that one key may have in one engine; null = any."
    )
    keys: dict[str, KeySettings] = Field(
        default_factory=dict,
        description="By the public name of a key its `weight` beside others (1) and its `max_priority` (`normal`).",
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Size of an HTTP request body.")
    max_upload_bytes: int = Field(
        default=32 << 20, ge=1024, le=MOST_UPLOAD, description="The same of a body that brings pictures."
    )
    max_input_bytes: int = Field(default=16 << 20, ge=64, description="Size of the file of one input picture.")
    max_input_pixels: int = Field(default=4096 * 4096, ge=1, description="Width x height of one input picture.")

    def of_key(self, key: str | None) -> KeySettings:
        """What is said of a key. None: no key is asked for, or a Python handle asks; any priority may be named."""
        if key is None:
            return KeySettings(max_priority="high")
        return self.keys.get(key, KeySettings())


class DefaultSettings(Strict):
    """What a request gets when it does not say."""

    size: Size = Field(default=Size(1024, 1024), description="`WIDTHxHEIGHT` in pixels.")
    num_inference_steps: int = Field(default=28, ge=1, description="Denoising steps.")
    guidance_scale: float = Field(default=3.5, ge=0, le=100, description="How closely to follow the prompt.")
    negative_prompt: str = Field(default="", description="What to guide away from; for models that read one.")
    true_cfg_scale: float = Field(
        default=1.0, ge=1, le=100, description="Guidance by the negative prompt, for models whose own is embedded."
    )
