"""Settings of engines: time-outs, limits on restarts, and the number of engines."""

from __future__ import annotations

from pydantic import Field, model_validator

from raycache.strict import Strict

__all__ = ["AutoscalingSettings", "ReliabilitySettings"]


class ReliabilitySettings(Strict):
    """Time-outs, and how often something may fail before the service acts."""

    max_queued_requests: int = Field(
        default=32, ge=0, description="Jobs that may wait in one engine, in addition to those that may run."
    )
    max_queued_seconds: float = Field(default=120.0, gt=0, description="Predicted seconds of queued work admitted.")
    request_timeout_s: float = Field(
        default=300.0, gt=0, description="Deadline of a request that sets none, in seconds."
    )
    watchdog_floor_s: float = Field(default=5.0, gt=0, description="Seconds without progress that are never a hang.")
    watchdog_steps: float = Field(
        default=3.0,
        gt=1,
        description="Hang = no progress for this many times what the step, encoding or decoding takes.",
    )
    watchdog_first_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds without progress that are a hang where nothing can be predicted: the very first jobs, and "
        "the compiling of a transformer block.",
    )
    max_restarts: int = Field(
        default=5, ge=0, description="Gang restarts within `restart_window_s`; after more, Serve replaces the engine."
    )
    restart_window_s: float = Field(default=600.0, gt=0, description="Seconds over which restarts are counted.")
    drain_timeout_s: float = Field(
        default=60.0, gt=0, description="Seconds a replica that is shut down may take to finish its admitted jobs."
    )
    health_check_period_s: float = Field(
        default=2.0,
        gt=0,
        description="Seconds between health checks; Serve replaces a replica after three failed ones in a row.",
    )


class AutoscalingSettings(Strict):
    """How many engines run, by predicted seconds of queued work. One replica = one gang."""

    min_replicas: int = Field(
        default=1,
        ge=0,
        description="Minimum number of engines; 0 = none without requests, and the first request waits.",
    )
    max_replicas: int = Field(ge=1, description="Maximum number of engines; each reserves a gang's GPUs.")
    target_queued_seconds: float = Field(
        default=30.0, gt=0, description="Predicted seconds of work that one engine may have queued."
    )
    upscale_delay_s: float = Field(
        default=10.0, ge=0, description="Seconds for which more engines must be needed before one is added."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, description="Seconds for which fewer engines must be needed before one is removed."
    )
    downscale_to_zero_delay_s: float | None = Field(
        default=None, ge=0, description="The same for the last engine; null = `downscale_delay_s`."
    )
    metrics_interval_s: float = Field(
        default=2.0, gt=0, description="Seconds between two reports of an engine; the mean of three is used."
    )

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}: swap them")
        return self
