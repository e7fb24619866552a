"""Runs kept jobs on engines: a few at once, each until it ends, also if engines die meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from raycache.ingress.asker import key_in_use
from raycache.ingress.sse import Events
from raycache.protocol.errors import RequestError, internal_error
from raycache.protocol.schemas import GenerationRequest, GenerationResult, ProgressEvent, QueuedEvent, ResolvedRequest
from raycache.protocol.stored import StoredError, StoredJob
from raycache.store.folder import JobFolder
from raycache.store.index import JobIndex
from raycache.store.requests import chosen, request_of
from raycache.store.results import keep_result
from raycache.store_metrics import StoreMetrics
from raycache.store_settings import StoreSettings

__all__ = ["MOST_ATTEMPTS", "Asker", "JobRunner", "interrupted"]

logger = logging.getLogger("ray.serve")

#: Begun so often and lost each time, a job counts as what brings engines, or the store, down.
MOST_ATTEMPTS = 3
#: Seconds between two tries at least: an engine that is full may say that there is room, and mean another's job.
_LEAST_S = 0.2


class Asker(Protocol):
    """Who asks engines; :class:`raycache.ingress.engine_pools.EnginePools` is one."""

    def longest_timeout_s(self, model: str | None) -> float: ...
    def own_name(self, model: str | None) -> str: ...
    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None: ...
    async def order(self, request: GenerationRequest) -> ResolvedRequest: ...
    def stream(self, request: GenerationRequest) -> Events: ...


class JobRunner:
    """Works on the jobs of ``index`` that are not over.

    Args:
        settings: of the store.
        asker: through whom engines are asked.
        index: all jobs.
        folder: where results go.
        keep: writes what a job has become; a job that was deleted meanwhile is none of its business.
        metrics: of the store.
        clock: ``time.time``.
    """

    def __init__(
        self,
        settings: StoreSettings,
        asker: Asker,
        index: JobIndex,
        folder: JobFolder,
        keep: Callable[[StoredJob], Awaitable[None]],
        metrics: StoreMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._asker, self._index, self._folder = settings, asker, index, folder
        self._keep, self._metrics, self._clock = keep, metrics, clock
        self._active: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._encoding = asyncio.Lock()  # one at a time: frames are large, and an encoder takes every CPU

    def wake(self) -> None:
        """There is a new job."""
        self._changed.set()

    async def run(self) -> None:
        """Begin jobs for ever.

        Never from a request's own task: Serve cancels what was submitted in its context when that ends.
        """
        while True:
            self._changed.clear()
            while (job := self._index.next_to_begin(self._active, self._settings.max_active)) is not None:
                task = asyncio.get_running_loop().create_task(self._until_over(job))
                self._active[job.id] = task
                # Not at the task's own end: one that is cancelled before it begins never comes there.
                task.add_done_callback(partial(self._ended, job.id))
            await self._changed.wait()

    def _ended(self, id: str, _: asyncio.Task[None]) -> None:
        del self._active[id]
        self._changed.set()

    async def drop(self, id: str) -> None:
        """Stop working on a job, and wait until no engine is asked for it any more."""
        if (task := self._active.get(id)) is not None:
            task.cancel()
            await asyncio.wait([task])

    def stop(self) -> None:
        """Let go of every job as it is; whoever takes the folder next begins them again."""
        for task in self._active.values():
            task.cancel()

    async def _until_over(self, job: StoredJob) -> None:
        key_in_use.set(job.owner)  # of this task; its limits and its weight count as if it asked itself
        try:
            await self._try(job)
        except RequestError as error:
            await self._fail(job.id, error)
        except Exception:
            logger.exception("Job %s met a bug", job.id)
            await self._fail(job.id, internal_error())

    async def _try(self, job: StoredJob) -> None:
        deadline = job.created_at + (job.request.get("timeout_s") or self._settings.timeout_s)
        while (left := deadline - self._clock()) > 0:
            timeout_s = min(left, self._asker.longest_timeout_s(job.model))
            try:
                job = await self._judged(job, timeout_s)
                request = await self._request(job, timeout_s)
                result = await self._generated(job.id, request)
            except RequestError as error:
                if error.code == "deadline_exceeded" and deadline - self._clock() > _LEAST_S:
                    continue  # of this try: it may not take as long as a job may
                again_s = self._again_in(job.id, error)
                logger.info("Job %s is tried again in %.1f s: %s", job.id, again_s, error.code)
                await asyncio.sleep(min(again_s, max(0.0, deadline - self._clock())))
                continue
            await self._complete(job.id, request, result)
            return
        raise RequestError(504, "the deadline passed before the job was done", "timeout_s", "deadline_exceeded")

    async def _judged(self, job: StoredJob, timeout_s: float) -> StoredJob:
        """``job`` with all that is chosen for it. One that was kept while engines slept waits for the first."""
        if job.judged:
            return job
        order = await self._asker.order(await self._request(job, timeout_s))
        request = {name: value for name, value in {**job.request, **chosen(order)}.items() if value is not None}
        job = self._index[job.id].model_copy(update={"request": request, "judged": True})
        await self._keep(job)
        return job

    async def _request(self, job: StoredJob, timeout_s: float) -> GenerationRequest:
        try:
            return await asyncio.to_thread(request_of, job, partial(self._folder.path_of, job.id), timeout_s)
        except OSError as error:
            logger.error("A picture of job %s cannot be read: %s", job.id, error.strerror or type(error).__name__)
            message = "a picture of the request cannot be read any more; the log has the reason"
            raise RequestError(500, message, None, "picture_lost") from None

    def _again_in(self, id: str, error: RequestError) -> float:
        """Seconds after which trying again makes sense; raises ``error`` when it does not."""
        attempts = self._index[id].attempts
        lost = error.code in ("engine_died", "gang_restarting")
        if error.retry_after_s is None or (lost and attempts >= MOST_ATTEMPTS):
            raise error
        self._metrics.retries.inc(tags={"model": self._index[id].model, "cause": error.code})
        return max(_LEAST_S, error.retry_after_s)

    async def _generated(self, id: str, request: GenerationRequest) -> GenerationResult:
        begun = False
        async with contextlib.aclosing(self._asker.stream(request)) as events:
            async for event in events:
                if isinstance(event, GenerationResult):
                    return event
                if not begun and isinstance(event, ProgressEvent | QueuedEvent):
                    begun = True  # an engine has it: one that dies while it encodes has died of it, perhaps
                    await self._begin(id)
                if isinstance(event, ProgressEvent):
                    # Not written: after a restart it begins again anyway.
                    self._show(id, math.floor(100 * event.step / (event.steps + 1)))
        raise RequestError(500, "the engine ended the stream without a result", None, "job_failed")

    async def _begin(self, id: str) -> None:
        job = self._index[id]
        logger.info("Job %s is being drawn", id)
        now = self._clock()
        if not job.attempts:
            self._metrics.wait_seconds.observe(now - job.created_at, {"model": job.model})
        begun = {"status": "in_progress", "attempts": job.attempts + 1, "begun_at": now}
        await self._keep(job.model_copy(update=begun))

    def _show(self, id: str, progress: int) -> None:
        job = self._index[id]
        self._index.put(job.model_copy(update={"progress": max(job.progress, progress)}))

    async def _complete(self, id: str, request: GenerationRequest, result: GenerationResult) -> None:
        async with self._encoding:
            job = self._index[id]

            def allow(bytes: int) -> None:
                self._index.check_room(job.owner, bytes)

            try:
                kept = await asyncio.to_thread(keep_result, self._folder, self._settings, job, request, result, allow)
            except OSError as error:
                logger.error("The result of job %s could not be kept: %s", id, error.strerror or type(error).__name__)
                raise RequestError(
                    507, "the result could not be kept; the log has the reason", None, "store_full"
                ) from None
            now = self._clock()
            ended = {"completed_at": now, "expires_at": now + self._settings.expires_s}
            kept = kept.model_copy(update={"status": "completed", "progress": 100, **ended})
            await self._keep(kept)
        self._metrics.over(kept)
        logger.info("Job %s is done: %d bytes", id, kept.bytes)

    async def _fail(self, id: str, error: RequestError) -> None:
        if id in self._index:
            logger.info("Job %s failed: %s", id, error.code)
            job = failed(self._index[id], error, self._clock(), self._settings.expires_s)
            self._metrics.over(job)
            await self._keep(job)


def failed(job: StoredJob, error: RequestError, now: float, expires_s: float) -> StoredJob:
    """``job``, which came to nothing."""
    ended = {"completed_at": now, "expires_at": now + expires_s}
    return job.model_copy(update={"status": "failed", "error": StoredError.of(error), **ended})


def interrupted(job: StoredJob, now: float, expires_s: float) -> StoredJob:
    """What becomes of a job that was under way when its store died: it is run again, the same result comes of it.

    One that was there each time a store died is not: it may be the cause.
    """
    if job.attempts < MOST_ATTEMPTS:
        return job.model_copy(update={"status": "queued", "progress": 0})
    message = f"the service was interrupted each of the {job.attempts} times that it worked on this job"
    return failed(job, RequestError(500, message, None, "interrupted"), now, expires_s)
