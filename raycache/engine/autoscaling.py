"""The number of engines that the queued work needs: Serve's autoscaling with the predictions of admission.

Counting requests says little here: four steps at 256x256 and fifty at 2048x2048 differ a thousandfold. Serve pickles
this module by value and runs it in its controller, so it imports nothing of this package except the settings' types.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

if TYPE_CHECKING:
    from raycache.engine_settings import AutoscalingSettings

__all__ = ["JOBS", "QUEUED_S", "QueuedSeconds", "autoscaling_config"]

#: What an engine reports to Serve: predicted seconds until a new job would start, and jobs it holds.
QUEUED_S, JOBS = "predicted_queue_s", "jobs"


class QueuedSeconds:
    """Engines wanted = predicted seconds of queued work over all engines / seconds that one engine may have queued.

    At least one while any engine holds a job: a job that takes longer than predicted has no predicted seconds left.
    Serve applies delays and bounds, and starts the first engine if there is none.
    """

    def __init__(self, target_queued_seconds: float) -> None:
        self._target_s = target_queued_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        told = context.aggregated_metrics or {}
        wanted = math.ceil(sum(told.get(QUEUED_S, {}).values()) / self._target_s)
        held = sum(told.get(JOBS, {}).values()) > 0
        return max(wanted, int(held)), {}


def autoscaling_config(settings: AutoscalingSettings) -> AutoscalingConfig:
    """Serve's own configuration for these settings."""
    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        metrics_interval_s=settings.metrics_interval_s,
        # A single sample may fall between two jobs.
        look_back_period_s=3 * settings.metrics_interval_s,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        downscale_to_zero_delay_s=settings.downscale_to_zero_delay_s,
        policy=AutoscalingPolicy(
            policy_function=QueuedSeconds, policy_kwargs={"target_queued_seconds": settings.target_queued_seconds}
        ),
    )
