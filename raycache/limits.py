"""What requests may ask, and what they get when they do not say: `limits` and `defaults` in the settings."""

from __future__ import annotations

from pydantic import Field

from raycache.strict import Strict

__all__ = ["DefaultSettings", "LimitSettings"]


class LimitSettings(Strict):
    """What one request, or one key, may ask. Everything above is answered 4xx before a GPU is touched."""

    max_pixels: int = Field(default=2048 * 2048, ge=256, description="Width x height of one image.")
    max_steps: int = Field(default=100, ge=1, description="`num_inference_steps`.")
    max_images: int = Field(default=4, ge=1, le=64, description="`n`.")
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
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Size of an HTTP request body.")


class DefaultSettings(Strict):
    """What a request gets when it does not say."""

    size: str = Field(default="1024x1024", pattern="^[0-9]{1,5}x[0-9]{1,5}$", description="`WIDTHxHEIGHT` in pixels.")
    num_inference_steps: int = Field(default=28, ge=1, description="Denoising steps.")
    guidance_scale: float = Field(default=3.5, ge=0, le=100, description="Strength of the guidance embedding.")
