"""Jobs in a folder, and their life cycle: stored, started, recovered, deleted, expired."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from raycache.ingress.asker import key_in_use
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.stored import JobKind, Order, Page, StoredJob, new_job_id
from raycache.store.folder import JobFolder
from raycache.store.index import JobIndex
from raycache.store.requests import asked_as, chosen, image_files, kept_request
from raycache.store.runner import Asker, JobRunner, interrupted
from raycache.store_metrics import StoreMetrics
from raycache.store_settings import StoreSettings

__all__ = ["JobStore"]

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

#: Seconds between two checks for expired jobs, and between two tries to lock the folder.
_SWEEP_S, _TAKE_S = 2.0, 0.25


class JobStore:
    """Jobs in a folder, run on engines.

    Args:
        settings: the store's settings.
        asker: sends requests to engines.
        metrics: the process's metrics.
        clock: ``time.time``.

    Raises:
        OSError: the folder cannot be created or is not writable.
    """

    def __init__(
        self, settings: StoreSettings, asker: Asker, metrics: StoreMetrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._asker, self._metrics, self._clock = settings, asker, metrics, clock
        self._folder, self._index = JobFolder(settings.folder), JobIndex(settings)
        self._runner = JobRunner(settings, asker, self._index, self._folder, self._keep, metrics, clock)
        self._adding, self._writing = asyncio.Lock(), asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._ours = False
        self._working = asyncio.get_running_loop().create_task(self._work())

    async def submit(
        self, kind: JobKind, request: GenerationRequest, key: str | None, notes: Sequence[str] = ()
    ) -> StoredJob:
        """Store a job, which starts when its turn comes.

        Args:
            kind: images or a video.
            request: checked here, so errors are reported now; or by the first engine that starts, if none runs and
                none has ever reported its capabilities.
            key: public name of the client's key.
            notes: warnings to add to those of its result.

        Raises:
            RequestError: refused; 429 and 507 if there is no room.
        """
        self._check_ours()
        key_in_use.set(key)  # of this call; its limits apply
        if (order := await self._asker.judge(request)) is not None:
            fields = chosen(order)
        else:
            seed = secrets.randbelow(2**32) if request.seed is None else request.seed
            fields = {"seed": seed, "model": self._asker.own_name(request.model)}
        files = await asyncio.to_thread(image_files, request)
        request = request.model_copy(update=fields)
        return await self._whole(self._add(kind, request, order is not None, key, notes, files))

    def find(self, kind: JobKind, id: str, key: str | None) -> StoredJob:
        """The job and its state.

        Raises:
            RequestError: 404.
        """
        self._check_ours()
        return self._index.find(kind, id, key)

    def page(self, kind: JobKind, key: str | None, after: str | None, limit: int, order: Order) -> Page:
        """Jobs of ``key``, see :meth:`JobIndex.page`.

        Raises:
            RequestError: 400.
        """
        self._check_ours()
        return self._index.page(kind, key, after, limit, order)

    async def delete(self, kind: JobKind, id: str, key: str | None) -> StoredJob:
        """Delete a job and its result. A running job is dropped on all ranks.

        Raises:
            RequestError: 404, 500 if its files cannot be removed: it then stays as it was.
        """
        job = self.find(kind, id, key)
        try:
            await self._whole(self._forget(job, "deleted"))
        except OSError as error:
            logger.error("Job %s could not be removed: %s", id, error.strerror or type(error).__name__)
            raise RequestError(
                500, "the job could not be deleted; the log has the reason", None, "not_deleted"
            ) from None
        return job

    async def read(self, kind: JobKind, id: str, key: str | None, what: str, start: int, length: int) -> bytes:
        """Part of a result: ``length`` bytes of the file ``what`` from offset ``start``.

        Raises:
            RequestError: 404; 500 for a file that something else removed.
        """
        job = self.find(kind, id, key)
        file = job.files.get(what)
        if file is None:
            raise RequestError(404, f"{id} has no {what[:80]!r}; it has {', '.join(job.files)}", None, "not_found")
        try:
            return await asyncio.to_thread(self._folder.read, id, file.name, start, length)
        except OSError as error:
            self._index.find(kind, id, key)  # deleted or expired just now: 404
            logger.error("A result of job %s cannot be read: %s", id, error.strerror or type(error).__name__)
            raise RequestError(500, "the result cannot be read; the log has the reason", None, "result_lost") from None

    def check_health(self) -> None:
        """Raises if jobs are not being run any more."""
        if self._working.done():
            raise RuntimeError("the store has stopped; the log has the reason")

    async def sweep(self) -> None:
        """Delete expired jobs."""
        for job in self._index.expired(self._clock()):
            logger.info("Job %s has expired", job.id)
            try:
                await self._forget(job, "expired")
            except OSError as error:
                logger.error("Job %s could not be removed, and will be retried: %s", job.id, error.strerror)

    def close(self) -> None:
        """Release the folder and every job for the next store; the same happens when this one dies."""
        self._working.cancel()
        self._runner.stop()
        self._ours = False
        self._folder.release()

    async def _work(self) -> None:
        waited = False
        while not await asyncio.to_thread(self._folder.take):
            if not waited:
                waited = True
                logger.warning("Another store is using %s; waiting until it ends", self._settings.folder)
            await asyncio.sleep(_TAKE_S)
        for job in await asyncio.to_thread(self._folder.load):
            self._index.put(job)
        for job in self._index:
            if not job.over:
                await self._found(job)
        self._ours = True
        logger.info("Loaded %d jobs from %s", len(self._index), self._settings.folder)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._runner.run())
            both.create_task(self._keep_swept())

    async def _keep_swept(self) -> None:
        while True:
            await self.sweep()
            self._metrics.kept(self._index)
            await asyncio.sleep(_SWEEP_S)

    async def _found(self, job: StoredJob) -> None:
        """Recover ``job``, which was running or waiting when the last store ended."""
        now = interrupted(job, self._clock(), self._settings.expires_s)
        if now.over:
            self._metrics.over(now)
        elif job.status == "in_progress":
            self._metrics.retries.inc(tags={"model": job.model, "cause": "interrupted"})
        await self._keep(now)

    async def _add(
        self,
        kind: JobKind,
        request: GenerationRequest,
        judged: bool,
        key: str | None,
        notes: Sequence[str],
        files: dict[str, bytes],
    ) -> StoredJob:
        images = {name.removeprefix("input-").removesuffix(".png"): len(data) for name, data in files.items()}
        async with self._adding:  # no other job may be added between the check and this one
            self._index.check_room(key)
            if images:
                self._index.check_room(key, sum(images.values()))
            job = StoredJob(
                id=new_job_id(kind, self._clock()),
                kind=kind,
                owner=key,
                model=request.model or "",
                created_at=self._clock(),
                request=kept_request(request),
                judged=judged,
                asked_as=asked_as(request),
                images=images,
                about={"warnings": list(notes)},
            )
            try:
                await asyncio.to_thread(self._folder.add, job, files)
            except OSError as error:
                logger.error("A job could not be stored: %s", error.strerror or type(error).__name__)
                message = "the job could not be stored; the log has the reason"
                raise RequestError(507, message, None, "store_full") from None
            self._index.put(job)
        logger.info("Stored job %s", job.id)
        self._runner.wake()
        return job

    async def _forget(self, job: StoredJob, cause: str) -> None:
        self._index.drop(job.id)
        await self._runner.drop(job.id)
        try:
            async with self._writing:
                await asyncio.to_thread(self._folder.remove, job.id)
        except OSError:
            self._index.put(job)  # as it is on disk: a restart would also bring it back
            self._runner.wake()
            raise
        self._metrics.removed.inc(tags={"model": job.model, "cause": cause})

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``; it completes even if the client disconnects, so that memory and disk agree."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _keep(self, job: StoredJob) -> None:
        """Store the new state of a job: on disk first, then in the index, so a crash never undoes what clients saw."""
        async with self._writing:
            if job.id not in self._index:
                return
            try:
                await asyncio.to_thread(self._folder.write, job)
            except OSError as error:
                # Clients still see the new state; only a restart would go back to the old one.
                logger.error("Job %s could not be written: %s", job.id, error.strerror or type(error).__name__)
            if job.id in self._index:  # not deleted meanwhile
                self._index.put(job)

    def _check_ours(self) -> None:
        if not self._ours:
            raise unavailable("the store is starting, or replacing another one; try again", 1.0, "store_starting")
