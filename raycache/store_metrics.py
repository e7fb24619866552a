"""Metrics of the store; specified as in :mod:`raycache.metrics`, which lists all."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable
from typing import get_args

from ray.serve.metrics import Counter, Gauge, Histogram

from raycache.metric_specs import Spec, Specified
from raycache.protocol.stored import JobStatus, StoredJob

__all__ = ["StoreMetrics"]

#: Buckets for stored jobs, in seconds.
_LONG_SECONDS = (1, 3, 10, 30, 100, 300, 1000, 3600, 10_800, 43_200, 86_400, 604_800)


class StoreMetrics(Specified):
    """The metrics of the store.

    Args:
        models: the models of the service, which are reported from the start.
    """

    jobs = Spec(
        Gauge,
        "raycache_stored_jobs",
        "Jobs kept, by status (queued, in_progress, completed, failed).",
        ("model", "status"),
    )
    bytes = Spec(Gauge, "raycache_stored_bytes", "Bytes kept: results, and the input images of jobs.")
    wait_seconds = Spec(
        Histogram,
        "raycache_stored_wait_seconds",
        "Seconds from a kept job's arrival until an engine first started it.",
        ("model",),
        _LONG_SECONDS,
    )
    run_seconds = Spec(
        Histogram,
        "raycache_stored_run_seconds",
        "Seconds of a kept job's last try, from its acceptance by an engine until its result is kept.",
        ("model",),
        _LONG_SECONDS,
    )
    ended = Spec(
        Counter,
        "raycache_stored_ended_total",
        "Kept jobs that ended, by outcome (completed, failed) and cause (the error's code; empty when completed).",
        ("model", "outcome", "cause"),
    )
    removed = Spec(
        Counter,
        "raycache_stored_removed_total",
        "Jobs removed from the store, by cause (deleted, expired).",
        ("model", "cause"),
    )
    retries = Spec(
        Counter,
        "raycache_stored_retries_total",
        "Failed tries that will be repeated, by the code of the error; `interrupted`: the store was replaced.",
        ("model", "cause"),
    )

    def __init__(self, models: Iterable[str] = ()) -> None:
        super().__init__()
        self._told = {(model, status) for model in models for status in get_args(JobStatus)}

    def kept(self, jobs: Iterable[StoredJob]) -> None:
        """Record the state of all stored ``jobs``."""
        number: Counts[tuple[str, str]] = Counts()
        size = 0
        for job in jobs:
            number[job.model, job.status] += 1
            size += job.bytes
        self._told |= number.keys()
        for model, status in self._told:
            self.jobs.set(number[model, status], {"model": model, "status": status})
        self.bytes.set(size)

    def over(self, job: StoredJob) -> None:
        """Record that ``job`` is completed, or failed."""
        cause = job.error.code if job.error else ""
        self.ended.inc(tags={"model": job.model, "outcome": job.status, "cause": cause})
        if job.status == "completed" and job.completed_at is not None and job.begun_at is not None:
            self.run_seconds.observe(max(0.0, job.completed_at - job.begun_at), {"model": job.model})
