"""Waits for jobs of a store, and answers that its engines may give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.stored import StoredJob
from raycache.store.job_store import JobStore
from tests.helpers.stored import until

__all__ = ["FULL", "LOST", "Start", "over", "under_way"]

Start = Callable[..., Awaitable[JobStore]]

LOST = unavailable("the engine died", 0.01, "engine_died")
FULL = RequestError(429, "full", None, "queue_full", 0.01)


async def over(store: JobStore, job: StoredJob) -> StoredJob:
    await until(lambda: store.find(job.kind, job.id, job.owner).over)
    return store.find(job.kind, job.id, job.owner)


async def under_way(store: JobStore, job: StoredJob) -> StoredJob:
    await until(lambda: store.find(job.kind, job.id, job.owner).status == "in_progress")
    return store.find(job.kind, job.id, job.owner)
