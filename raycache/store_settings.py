"""Where kept jobs are stored, and for how long: `store` in the settings."""

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
        description="Where jobs and results are kept: an absolute path, created if missing, but not its parents. On "
        "several nodes a shared folder; one service per folder."
    )
    expires_s: float = Field(default=86_400.0, gt=0, description="Seconds for which a finished job is kept.")
    timeout_s: float = Field(
        default=86_400.0,
        gt=0,
        description="Seconds from its arrival in which a job without `timeout_s` must end.",
    )
    max_timeout_s: float = Field(
        default=604_800.0,
        gt=0,
        description="Maximum `timeout_s` of a kept job, in place of `limits.max_timeout_s`; `store.timeout_s`, if that "
        "is larger.",
    )
    max_jobs: int = Field(default=1000, ge=1, description="Jobs kept, whatever their state; one more is answered 507.")
    max_bytes: int = Field(default=20 << 30, ge=1, description="Bytes of all results; once reached, new jobs get 507.")
    max_jobs_per_key: int | None = Field(
        default=None, ge=1, description="Jobs of one key, of any state; one more is answered 429; null = any number."
    )
    max_bytes_per_key: int | None = Field(
        default=None, ge=1, description="Bytes of one key's results; once reached, it gets 429; null = any number."
    )
    max_active: int = Field(default=4, ge=1, description="Jobs sent to engines at once; the others wait in the store.")
    video_codec: VideoCodec = Field(
        default="h264", description="Codec of the MP4: `h264` plays everywhere (x264, GPL), `vp9` and `av1` are free."
    )
    video_crf: int | None = Field(
        default=None,
        ge=0,
        le=63,
        description="Constant rate factor; lower is better quality and a larger file; null = 18 for h264, 28 for vp9, "
        "30 for av1.",
    )
    num_cpus: float = Field(default=0.5, gt=0, description="CPUs reserved for the store; encoding videos uses them.")

    @property
    def longest_timeout_s(self) -> float:
        """The longest deadline of a stored job, set or by default."""
        return max(self.max_timeout_s, self.timeout_s)
