"""The engine deployment: owns one gang, admits jobs to it, and answers each job once.

Errors that are answers (refused, aborted, failed) are *returned* as :class:`RequestError`, not raised: Serve logs a
traceback for everything that a deployment raises, and a full queue is not worth a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from raycache.engine.admission import Admission
from raycache.engine.autoscaling import JOBS, QUEUED_S
from raycache.engine.convert import forward, job_of, request_error, result_of
from raycache.engine.gang_like import GangLike, gang_of_this_replica
from raycache.engine.leases import Leases
from raycache.engine.telling import Told, told_of
from raycache.engine.user_config import Memory, UserConfig, memory_of_this_replica
from raycache.gang.costs import Work
from raycache.logs import join_serve_log, request_id
from raycache.metrics import Metrics
from raycache.protocol.errors import RequestError
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.job_errors import DeadlineExceeded, GangBroken
from raycache.protocol.resolve import check_deployment, deployment_warnings
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationResult,
    QueuedEvent,
    ResolvedRequest,
)
from raycache.settings import AppSettings
from raycache.tracing import exporter_in_use, trace_of_request

logger = logging.getLogger("ray.serve")

#: Seconds without a poll before an engine hands its queue back, and between checks. Ingresses poll every second.
_FORGOTTEN_S, _CHECK_S = 6.0, 1.0

Event = Told | GenerationResult | RequestError


class Engine:
    """One replica: one gang, which works on many jobs at once, step by step.

    The constructor returns once the gang is warm, so Serve routes nothing here earlier. In a rolling update Serve stops
    an old replica first, which frees its GPUs; with ``max_surge_percent`` it waits until the new one is warm.

    Raises:
        ValueError: the model cannot be served with these settings.
        Exception: raised by the gang while it started.
    """

    def __init__(
        self,
        settings: AppSettings,
        make_gang: Callable[[AppSettings], GangLike] = gang_of_this_replica,
        memory: Memory | None = None,
    ) -> None:
        began = time.monotonic()
        self._policy = settings.policy
        # A goal becomes options once: a rebuild must not depend on a presets file that has changed since.
        self._settings = settings = settings.model_copy(update={"cache": self._policy.cache})
        self._metrics = Metrics({str(settings.defaults.size), *(str(shape.size) for shape in settings.warmup)})
        self._jobs, self._leases = 0, Leases()
        self._polled_at: float | None = None
        self._stopped = threading.Event()
        join_serve_log()
        self._exporter = exporter_in_use()
        self._gang = make_gang(settings)
        self._admission = Admission(self._policy, self._gang.costs, self._gang.outlook)
        self._gang.start()  # generates the declared shapes, and learns the costs of jobs from them
        try:
            self._model = self._gang.capabilities()
            check_deployment(settings, self._policy, self._model)
        except BaseException:
            self._gang.shutdown()
            raise
        self._name = self._gang.status().name
        check = partial(check_deployment, settings, model=self._model)
        self._user_config = UserConfig(self._policy, check, memory or memory_of_this_replica())
        threading.Thread(target=self._watch_for_the_end, name="watch-for-the-end", daemon=True).start()
        self._start_s = seconds = time.monotonic() - began
        ranks, device = settings.parallel.ranks_per_replica, settings.parallel.device
        logger.info("Ready after %.1f s: %d ranks on %s, model %s.", seconds, ranks, device, settings.model.path)
        for warning in deployment_warnings(settings, self._policy, self._model):
            logger.warning("%s", warning)

    async def generate(
        self, request: ResolvedRequest, caller: str | None = None, key: str | None = None
    ) -> GenerationResult | RequestError:
        """Generate. ``request`` must come from :func:`raycache.protocol.resolve.resolve`.

        Cancelling the call drops a queued job immediately and a running one with the next tick, on all ranks. So does
        ``caller`` when it stops calling :meth:`poll`: the id of an ingress. ``key``: public name of the client's key,
        whose limits apply.
        """
        async for event in self._events(request, caller, key, watch=False):
            if isinstance(event, GenerationResult | RequestError):
                return event
        raise AssertionError("a job ended without an answer")

    async def generate_stream(
        self, request: ResolvedRequest, caller: str | None = None, key: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Like :meth:`generate`, with progress and previews before the answer, which comes last.

        With a ``caller``, the first event says that the job is admitted: its client's connection can be answered.
        """
        events = self._events(request, caller, key, watch=True)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    def poll(self, ingress_id: str | None = None) -> EngineStatus:
        """:meth:`status` for the ingress of this id; polling keeps its jobs and this engine in service."""
        self._leases.heard(ingress_id)
        status, self._polled_at = self.status(), time.monotonic()
        self._metrics.queued_jobs.set(status.queued)
        self._metrics.predicted_queue_seconds.set(status.predicted_queue_s)
        self._metrics.gang(self._gang.status())
        self._metrics.user_config_refused.set(float(status.user_config_refused is not None))
        return status

    def status(self) -> EngineStatus:
        """The status of this replica. Has no side effects, and never waits for a rank."""
        load, gang = self._admission.load(), self._gang.status()
        return EngineStatus(
            replica=self._name,
            ready=gang.ready,
            queued=load.queued,
            running=load.running > 0,
            predicted_queue_s=round(load.wait_s, 3),
            gang=asdict(gang),
            model=self._model,
            policy=self._policy,
            start_s=self._start_s,
            user_config_refused=self._user_config.refused,
            pid=os.getpid(),
            told_at=time.time(),
            model_name=self._settings.model.name,
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Metrics that Serve's controller passes to :class:`raycache.engine.autoscaling.QueuedSeconds`."""
        load = self._admission.load()
        # The time to rebuild ranks does not count: another engine could not take it over.
        return {QUEUED_S: load.backlog_s, JOBS: load.queued + load.running}

    def reconfigure(self, user_config: Any) -> None:
        """Serve's ``user_config``: the fields of :class:`raycache.settings.Policy`; jobs already admitted keep theirs.

        Raises:
            ValueError: see :meth:`raycache.engine.user_config.UserConfig.apply`. An error in service would make Serve
                replace a working engine by one that cannot start.
        """
        self._user_config.apply(user_config, serving=self._polled_at is not None)
        self._policy = self._admission.policy = self._user_config.policy

    def check_health(self) -> None:
        """Exit and raise if the gang is broken; Serve replaces the replica. Calls no rank."""
        try:
            self._gang.check_health()
        except GangBroken as broken:
            # Serve would wait for two more checks, and route requests to this empty queue. One second is for answers.
            logger.error("%s; exiting", broken)
            threading.Timer(1.0, self._leave, (1,)).start()
            raise

    def _watch_for_the_end(self) -> None:
        """Serve does not tell a replica that it is being stopped, but ingresses stop polling it.

        Running jobs are finished; waiting ones are returned to run on other engines.
        """
        while not self._stopped.wait(_CHECK_S):
            if self._polled_at is not None:
                self._user_config.keep()
            forgotten = self._polled_at is not None and time.monotonic() - self._polled_at > _FORGOTTEN_S
            if forgotten and (handed := self._gang.hand_back()):
                logger.warning("No ingress polls this engine any more; gave back %d queued jobs", handed)
            for orphan in self._leases.orphans():
                logger.warning("The ingress of job %s has died; dropping the job", orphan.job.id)
                orphan.abort("its ingress has died")

    _leave = staticmethod(os._exit)

    def __del__(self) -> None:
        # Serve calls this after the drain: admitted jobs have been answered or are past their time.
        if gang := getattr(self, "_gang", None):
            self._stopped.set()
            gang.shutdown()

    async def _events(
        self, request: ResolvedRequest, caller: str | None, key: str | None, *, watch: bool
    ) -> AsyncGenerator[Event, None]:
        arrived = time.monotonic()
        job, work = self._job(request, watch)
        mark = key, work, request.prompt, request.guidance_scale
        try:
            who: dict[str, Any] = {"key": key, "priority": request.priority, "mark": mark}
            ticket = self._admission.admit(job.id, work, request.timeout_s, **who)
        except RequestError as refusal:
            self._metrics.ended("refused", refusal.code)
            yield refusal
            return
        events: asyncio.Queue[Progress | None] = asyncio.Queue()
        report = forward(asyncio.get_running_loop(), events) if watch else None
        deadline = arrived + request.timeout_s
        share: dict[str, Any] = {"caller": ticket.job.caller, "weight": ticket.job.weight}
        handle = self._gang.submit(job, deadline=deadline, on_progress=report, **share)
        # The ticket is released when the gang ends the job; after a cancel that is later than the end of this call.
        handle.future.add_done_callback(lambda _: self._admission.release(ticket))
        # `outcome` is not awaited itself: cancelling that would cancel the future that the gang is about to set.
        outcome = asyncio.wrap_future(handle.future)
        outcome.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs it as unread
        outcome.add_done_callback(lambda done: events.put_nowait(None))
        place = partial(self._place, job.id) if watch and caller else None
        try:
            with self._leases.waiting(caller, handle):
                async with contextlib.aclosing(told_of(events, place, partial(self._admission.left_s, job.id))) as told:
                    async for event in told:
                        yield event
            answer = self._answer(request, outcome, time.monotonic() - arrived)
            if isinstance(answer, RequestError) and answer.code == "gang_restarting" and self._recovery_s():
                answer.retry_after_s = self._admission.again_in(ticket, request.timeout_s, mark)
            yield answer
        finally:
            if not handle.future.done():
                self._metrics.ended("aborted", "client_gone")
                handle.abort("the client disconnected")

    def _answer(
        self, request: ResolvedRequest, outcome: asyncio.Future[JobOutput], seconds: float
    ) -> GenerationResult | RequestError:
        try:
            output = outcome.result()
        except Exception as error:
            answer = request_error(error)
            self._metrics.ended("aborted" if isinstance(error, DeadlineExceeded) else "failed", answer.code)
            if answer.status == 500:
                logger.error("A job failed on the ranks: %s", error)
            else:
                logger.info("Answered %d %s", answer.status, answer.code)
            return answer
        result = result_of(request, output, seconds, self._model, self._policy.presets)
        steps, method = request.num_inference_steps, request.cache.type
        logger.info("Generated %d of %s, %d steps, %s, in %.2f s", request.n, request.size, steps, method, seconds)
        self._metrics.done(request.cache.type, str(request.size), request.n, result.times.model_dump())
        if output.report is not None:
            self._metrics.decided(output.report)
        if output.after_fault_s is not None:
            self._metrics.fault_to_image_seconds.observe(output.after_fault_s)
        return result

    def _place(self, id: str) -> QueuedEvent:
        return QueuedEvent(self._admission.ahead(id), self._admission.left_s(id))

    def _recovery_s(self) -> float:
        """Seconds until new ranks are ready; 0 if none are needed, or none will come."""
        return self._gang.status().ready_in_s

    def _job(self, request: ResolvedRequest, watch: bool) -> tuple[Job, Work]:
        self._jobs += 1
        return job_of(request, f"{self._jobs}", request_id(), watch=watch, trace=trace_of_request(self._exporter))
