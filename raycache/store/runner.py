"""Runs stored jobs on engines: a few at a time, each until it ends, even if engines die meanwhile."""

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

#: A job that was started and lost this often is considered the cause of the engines', or the store's, deaths.
MOST_ATTEMPTS = 3
#: Minimum seconds between two tries: the free place that a full engine promises may be for another job.
_LEAST_S = 0.2


class Asker(Protocol):
    """Sends requests to engines, such as :class:`raycache.ingress.engine_pools.EnginePools`."""

    def longest_timeout_s(self, model: str | None) -> float: ...
    def own_name(self, model: str | None) -> str: ...
    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None: ...
    async def order(self, request: GenerationRequest) -> ResolvedRequest: ...
    def stream(self, request: GenerationRequest) -> Events: ...


class JobRunner:
    """Runs the unfinished jobs of ``index``.

    Args:
        settings: the store's settings.
        asker: sends requests to engines.
        index: all jobs.
        folder: where results are stored.
        keep: writes the new state of a job; ignores a job that was deleted meanwhile.
        metrics: the store's metrics.
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
        self._encoding = asyncio.Lock()  # one at a time: frames are large, and an encoder uses all CPUs

    def wake(self) -> None:
        """Look for new jobs."""
        self._changed.set()

    async def run(self) -> None:
        """Start jobs, forever.

        Not from a request's own task: Serve cancels everything submitted in its context when it ends.
        """
        while True:
            self._changed.clear()
            while (job := self._index.next_to_begin(self._active, self._settings.max_active)) is not None:
                task = asyncio.get_running_loop().create_task(self._until_over(job))
                self._active[job.id] = task
                # Not within the task: one that is cancelled before it starts never gets there.
                task.add_done_callback(partial(self._ended, job.id))
            await self._changed.wait()

    def _ended(self, id: str, _: asyncio.Task[None]) -> None:
        del self._active[id]
        self._changed.set()

    async def drop(self, id: str) -> None:
        """Stop running a job, and wait until no engine has its request any more."""
        if (task := self._active.get(id)) is not None:
            task.cancel()
            await asyncio.wait([task])

    def stop(self) -> None:
        """Stop every job as it is; the next store with this folder restarts them."""
        for task in self._active.values():
            task.cancel()

    async def _until_over(self, job: StoredJob) -> None:
        key_in_use.set(job.owner)  # of this task; the limits and weight of the owner's key apply
        try:
            await self._try(job)
        except RequestError as error:
            await self._fail(job.id, error)
        except Exception:
            logger.exception("Job %s failed unexpectedly", job.id)
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
                    continue  # of this try, which may be shorter than a job's limit
                again_s = self._again_in(job.id, error)
                logger.info("Retrying job %s in %.1f s: %s", job.id, again_s, error.code)
                await asyncio.sleep(min(again_s, max(0.0, deadline - self._clock())))
                continue
            await self._complete(job.id, request, result)
            return
        raise RequestError(504, "the deadline passed before the job was done", "timeout_s", "deadline_exceeded")

    async def _judged(self, job: StoredJob, timeout_s: float) -> StoredJob:
        """``job`` with all values chosen. If it was stored while no engine ran, this waits for the first engine."""
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
            logger.error("An image of job %s cannot be read: %s", job.id, error.strerror or type(error).__name__)
            message = "an image of the request cannot be read any more; the log has the reason"
            raise RequestError(500, message, None, "image_lost") from None

    def _again_in(self, id: str, error: RequestError) -> float:
        """Seconds after which a retry makes sense; raises ``error`` if it does not."""
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
                    begun = True  # an engine has it: if it dies while encoding, this job may be the cause
                    await self._begin(id)
                if isinstance(event, ProgressEvent):
                    # Not written: after a restart the job starts again anyway.
                    self._show(id, math.floor(100 * event.step / (event.steps + 1)))
        raise RequestError(500, "the engine ended the stream without a result", None, "job_failed")

    async def _begin(self, id: str) -> None:
        job = self._index[id]
        logger.info("Job %s is running", id)
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
                logger.error("The result of job %s could not be stored: %s", id, error.strerror or type(error).__name__)
                raise RequestError(
                    507, "the result could not be stored; the log has the reason", None, "store_full"
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
    """``job`` as failed."""
    ended = {"completed_at": now, "expires_at": now + expires_s}
    return job.model_copy(update={"status": "failed", "error": StoredError.of(error), **ended})


def interrupted(job: StoredJob, now: float, expires_s: float) -> StoredJob:
    """The new state of a job that was running when its store died: it is rerun, with the same result.

    A job that was running each time a store died is not rerun: it may be the cause.
    """
    if job.attempts < MOST_ATTEMPTS:
        return job.model_copy(update={"status": "queued", "progress": 0})
    message = f"the service was interrupted each of the {job.attempts} times that it worked on this job"
    return failed(job, RequestError(500, message, None, "interrupted"), now, expires_s)
