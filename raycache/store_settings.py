"""Where jobs that nobody waits for are kept, and for how long: `store` in the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from raycache.strict import Strict

__all__ = ["StoreSettings", "VideoCodec"]

VideoCodec = Literal["h264", "vp9", "av1"]


class StoreSettings(Strict):
    """Jobs that outlive the connection which asked for them: videos, and images asked for asynchronously."""

    folder: Path = Field(
        description="Where jobs and results are kept: a whole path, made if it is not there, but not its parents. On "
        "several nodes a shared folder; one service each."
    )
    expires_s: float = Field(default=86_400.0, gt=0, description="Seconds for which a job is kept once it is over.")
    timeout_s: float = Field(
        default=86_400.0,
        gt=0,
        description="Seconds from its arrival in which a job that names no `timeout_s` must end.",
    )
    max_timeout_s: float = Field(
        default=604_800.0,
        gt=0,
        description="`timeout_s` of a kept job, in place of `limits.max_timeout_s`; `store.timeout_s`, where that "
        "is more.",
    )
    max_jobs: int = Field(default=1000, ge=1, description="Jobs kept, whatever their state; one more is answered 507.")
    max_bytes: int = Field(default=20 << 30, ge=1, description="Bytes of all results; once reached, new jobs get 507.")
    max_jobs_per_key: int | None = Field(
        default=None, ge=1, description="Jobs of one key, of any state; one more is answered 429; null = any number."
    )
    max_bytes_per_key: int | None = Field(
        default=None, ge=1, description="Bytes of one key's results; once reached, it gets 429; null = any number."
    )
    max_active: int = Field(
        default=4, ge=1, description="Jobs that are asked of engines at once; the others wait in the store."
    )
    video_codec: VideoCodec = Field(
        default="h264", description="In an MP4: `h264` plays everywhere (x264, GPL), `vp9` and `av1` are free."
    )
    video_crf: int | None = Field(
        default=None,
        ge=0,
        le=63,
        description="Constant rate factor, less is better and larger; null = 18 for h264, 28 for vp9, 30 for av1.",
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs reserved for the store; encoding videos uses them.")

    @property
    def longest_timeout_s(self) -> float:
        """The longest deadline that a kept job may name, or have without naming one."""
        return max(self.max_timeout_s, self.timeout_s)
