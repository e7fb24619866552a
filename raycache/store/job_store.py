"""Jobs in a folder, and their life cycle: kept, started, recovered, deleted, expired."""

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
from raycache.store.requests import asked_as, chosen, kept_request, picture_files
from raycache.store.runner import Asker, JobRunner, interrupted
from raycache.store_metrics import StoreMetrics
from raycache.store_settings import StoreSettings

__all__ = ["JobStore"]

logger = logging.getLogger("ray.serve")

T = TypeVar("T")

#: Seconds between two looks at what has expired, and between two tries to get the folder.
_SWEEP_S, _TAKE_S = 2.0, 0.25


class JobStore:
    """Jobs in a folder, and their way to the engines.

    Args:
        settings: of the store.
        asker: through whom engines are asked.
        metrics: of the process.
        clock: ``time.time``.

    Raises:
        OSError: the folder can neither be made nor written.
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
        """Keep a job, which is begun when its turn comes.

        Args:
            kind: what is made.
            request: judged here, so what is wrong with it is said now; by the first engine that wakes, where all sleep
                and none has ever said what it can do.
            key: public name of who asks.
            notes: warnings that its result gets besides its own.

        Raises:
            RequestError: refused; 429 and 507 where there is no room.
        """
        self._check_ours()
        key_in_use.set(key)  # of this call; whose limits count
        if (order := await self._asker.judge(request)) is not None:
            fields = chosen(order)
        else:
            seed = secrets.randbelow(2**32) if request.seed is None else request.seed
            fields = {"seed": seed, "model": self._asker.own_name(request.model)}
        files = await asyncio.to_thread(picture_files, request)
        request = request.model_copy(update=fields)
        return await self._whole(self._add(kind, request, order is not None, key, notes, files))

    def find(self, kind: JobKind, id: str, key: str | None) -> StoredJob:
        """How a job is.

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
        """Forget a job and its result. One that is under way is dropped, on all ranks.

        Raises:
            RequestError: 404, 500 where its files cannot be removed: it is then kept as it was.
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
        """Part of a result: ``length`` bytes of the file ``what`` from ``start`` on.

        Raises:
            RequestError: 404, 500 for a file that somebody else removed.
        """
        job = self.find(kind, id, key)
        file = job.files.get(what)
        if file is None:
            raise RequestError(404, f"{id} has no {what[:80]!r}; it has: {', '.join(job.files)}", None, "not_found")
        try:
            return await asyncio.to_thread(self._folder.read, id, file.name, start, length)
        except OSError as error:
            self._index.find(kind, id, key)  # deleted or expired this very moment: 404
            logger.error("A result of job %s cannot be read: %s", id, error.strerror or type(error).__name__)
            raise RequestError(500, "the result cannot be read; the log has the reason", None, "result_lost") from None

    def check_health(self) -> None:
        """Raises when nothing is worked on any more."""
        if self._working.done():
            raise RuntimeError("the store works no more; the log has the reason")

    async def sweep(self) -> None:
        """Delete what has expired."""
        for job in self._index.expired(self._clock()):
            logger.info("Job %s has expired", job.id)
            try:
                await self._forget(job, "expired")
            except OSError as error:
                logger.error("Job %s could not be removed, and will be: %s", job.id, error.strerror)

    def close(self) -> None:
        """Let go of the folder and of every job; for a store that takes its place, as after a death."""
        self._working.cancel()
        self._runner.stop()
        self._ours = False
        self._folder.release()

    async def _work(self) -> None:
        waited = False
        while not await asyncio.to_thread(self._folder.take):
            if not waited:
                waited = True
                logger.warning("Another store has %s; waiting until it ends", self._settings.folder)
            await asyncio.sleep(_TAKE_S)
        for job in await asyncio.to_thread(self._folder.load):
            self._index.put(job)
        for job in self._index:
            if not job.over:
                await self._found(job)
        self._ours = True
        logger.info("Keeping %d jobs in %s", len(self._index), self._settings.folder)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._runner.run())
            both.create_task(self._keep_swept())

    async def _keep_swept(self) -> None:
        while True:
            await self.sweep()
            self._metrics.kept(self._index)
            await asyncio.sleep(_SWEEP_S)

    async def _found(self, job: StoredJob) -> None:
        """``job`` was under way, or waiting, when the last store ended."""
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
        pictures = {name.removeprefix("input-").removesuffix(".png"): len(data) for name, data in files.items()}
        async with self._adding:  # none comes between the look at what there is and what comes to it
            self._index.check_room(key)
            if pictures:
                self._index.check_room(key, sum(pictures.values()))
            job = StoredJob(
                id=new_job_id(kind, self._clock()),
                kind=kind,
                owner=key,
                model=request.model or "",
                created_at=self._clock(),
                request=kept_request(request),
                judged=judged,
                asked_as=asked_as(request),
                pictures=pictures,
                about={"warnings": list(notes)},
            )
            try:
                await asyncio.to_thread(self._folder.add, job, files)
            except OSError as error:
                logger.error("A job could not be kept: %s", error.strerror or type(error).__name__)
                message = "the job could not be kept; the log has the reason"
                raise RequestError(507, message, None, "store_full") from None
            self._index.put(job)
        logger.info("Keeping job %s", job.id)
        self._runner.wake()
        return job

    async def _forget(self, job: StoredJob, cause: str) -> None:
        self._index.drop(job.id)
        await self._runner.drop(job.id)
        try:
            async with self._writing:
                await asyncio.to_thread(self._folder.remove, job.id)
        except OSError:
            self._index.put(job)  # as it is on disk: a restart would bring it back, too
            self._runner.wake()
            raise
        self._metrics.removed.inc(tags={"model": job.model, "cause": cause})

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``, which ends as it should also when whoever asked leaves: memory and disk say the same."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _keep(self, job: StoredJob) -> None:
        """What a job has become: written, then shown, so that no death takes back what was told."""
        async with self._writing:
            if job.id not in self._index:
                return
            try:
                await asyncio.to_thread(self._folder.write, job)
            except OSError as error:
                # It is told as it is; only a restart would know it as it was before.
                logger.error("Job %s could not be written: %s", job.id, error.strerror or type(error).__name__)
            if job.id in self._index:  # not deleted meanwhile
                self._index.put(job)

    def _check_ours(self) -> None:
        if not self._ours:
            raise unavailable("the store is starting, or takes the place of another; try again", 1.0, "store_starting")
