"""The supervised group of rank actors that draws one job at a time, notices faults, and rebuilds itself.

All rank calls are submitted by one plain ``threading.Thread`` fed by a ``queue.Queue``. Serve cancels a request's
child tasks recursively, by context; tasks of this thread belong to no request, so no cancel can hit some ranks and not
others.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from raycache.actors import PULSE_S, Fault, RankActors
from raycache.job import (
    DeadlineExceeded,
    GangBroken,
    GangRestarting,
    GangStartError,
    Job,
    JobCancelled,
    JobFailed,
    JobOutput,
    Progress,
)
from raycache.pipeline import ModelFacts, ModelSource
from raycache.placement import placement_bundles
from raycache.rank import Failure
from raycache.settings import AppSettings, WarmupShape
from raycache.watchdog import Patience, beyond_warmup

__all__ = [
    "DeadlineExceeded",
    "Gang",
    "GangBroken",
    "GangRestarting",
    "GangStartError",
    "GangStatus",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobOutput",
    "ModelFacts",
    "Progress",
    "placement_bundles",
]

_logger = logging.getLogger("raycache.gang")

#: Seconds that ranks in lockstep get to raise the same error, before it counts as one rank's own.
_GRACE_S = 1.0
#: A job that met a fault is drawn once more: a picture is a pure function of request and seed.
_ATTEMPTS = 2
#: Guess of the seconds Serve takes to replace a replica, without the model's load.
_REPLACED_S = 30.0


@dataclass
class GangStatus:
    """The gang as it sees itself; made without calling a rank.

    Attributes:
        ready: ranks are loaded and no fault is being mended.
        restarts: incarnations after the first.
        faults: what was wrong each time, newest last, at most ten.
        ranks: each rank's last pulse, and its age in seconds.
        last_recovery_s: seconds from noticing the last fault to being ready again.
    """

    name: str
    ready: bool
    restarts: int
    queued: int
    job: str | None
    ranks: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last_recovery_s: float | None = None


class JobHandle:
    """A submitted job. ``future`` ends with a :class:`JobOutput` or one of the exceptions of ``raycache.job``."""

    def __init__(self, job: Job, deadline: float | None, on_progress: Callable[[Progress], None] | None) -> None:
        self.job, self.deadline, self.on_progress = job, deadline, on_progress
        self.future: Future[JobOutput] = Future()
        self.reason: str | None = None
        self._started = False
        self._lock = threading.Lock()

    def abort(self, reason: str) -> None:
        """Thread-safe. A queued job ends at once, a running one at its next step, on all ranks."""
        with self._lock:
            self.reason = self.reason or reason
            if not self._started:
                self._end(JobCancelled(self.reason))

    def _start(self) -> bool:
        """The gang takes it up; False if it is over already."""
        with self._lock:
            self._started = True
            return not self.future.done()

    def _pause(self) -> None:
        """It met a fault and waits for new ranks: an abort ends it at once again."""
        with self._lock:
            self._started = False

    def _late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def _end(self, outcome: JobOutput | Exception) -> None:
        with suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Gang:
    """Ranks, their queue, and the thread that owns both.

    Args:
        settings: the application's.
        placement_group: reserved with :func:`placement_bundles`; None = Ray places the ranks anywhere.
        name: for logs, e.g. the replica's id.
        first_bundle: index of the gang's first bundle in the placement group.
    """

    def __init__(self, settings: AppSettings, placement_group: Any = None, *, name: str, first_bundle: int = 0) -> None:
        self._settings, self._placement_group = settings, placement_group
        self._name, self._first_bundle = name, first_bundle
        self._queue: queue.Queue[JobHandle | None] = queue.Queue()
        self._waiting: list[JobHandle] = []
        self._waiting_lock = threading.Lock()
        self._actors: RankActors | None = None
        self._source: ModelSource | None = None
        self._facts: ModelFacts | None = None
        self._patience = Patience(settings.reliability, compiles=settings.model.compile)
        self._running: JobHandle | None = None
        self._ready = False
        self._broken: str | None = None
        self._restarts: list[float] = []
        self._faults: list[str] = []
        self._load_s = 0.0
        self._recovery_s: float | None = None
        self._started: Future[ModelFacts] = Future()
        self._thread = threading.Thread(target=self._main, name=f"gang-{name}", daemon=True)

    # --- for the service: thread-safe, never waits for a rank (but start) -----------------------------------------

    def start(self) -> None:
        """Spawn the ranks, join them, load the model, draw the declared warm-up shapes. Blocks until ready.

        Raises:
            GangStartError: why, and what to change.
        """
        self._thread.start()
        self._started.result()

    def submit(
        self, job: Job, *, deadline: float | None = None, on_progress: Callable[[Progress], None] | None = None
    ) -> JobHandle:
        """Queue a job.

        Args:
            deadline: ``time.monotonic()`` after which it is dropped, or stopped at the next step.
            on_progress: called by the gang's thread once per denoising step, about :data:`PULSE_S` late.
        """
        handle = JobHandle(job, deadline, on_progress)
        with self._waiting_lock:
            if self._broken is not None or not self._thread.is_alive():
                handle._end(GangRestarting(self._broken or "this gang is shut down", _REPLACED_S))
                return handle
            self._waiting.append(handle)
        self._queue.put(handle)
        return handle

    def status(self) -> GangStatus:
        """Made of what the last pulses said."""
        ranks = []
        if (actors := self._actors) is not None:
            for rank, (pulse, age) in enumerate(zip(actors.pulses, actors.ages(), strict=True)):
                known = {} if pulse is None else asdict(pulse)
                known.pop("events", None)
                ranks.append({"rank": rank, **known, "age_s": round(age, 3)})
        running = self._running
        return GangStatus(
            name=self._name,
            ready=self._ready,
            restarts=len(self._restarts),
            queued=len(self._waiting),
            job=running.job.id if running else None,
            ranks=ranks,
            faults=self._faults[-10:],
            last_recovery_s=self._recovery_s,
        )

    def check_health(self) -> None:
        """Raises GangBroken when the gang has given up; a gang that is being rebuilt is healthy."""
        if self._broken is not None:
            raise GangBroken(self._broken)
        if self._started.done() and not self._thread.is_alive():
            raise GangBroken(f"gang {self._name}: its thread has ended")

    def model_facts(self) -> ModelFacts:
        """Facts of the loaded model; only after :meth:`start`."""
        if self._facts is None:
            raise RuntimeError(f"gang {self._name} has not been started")
        return self._facts

    def shutdown(self, drain_s: float = 0) -> None:
        """End the ranks; what is queued gets up to ``drain_s`` seconds, then GangRestarting."""
        end = time.monotonic() + drain_s
        while (self._waiting or self._running) and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.05)
        self._queue.put(None)
        if running := self._running:
            running.abort("the replica is shutting down")
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    # --- the gang's thread ------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._spawn()
            self._started.set_result(self._facts)
        except BaseException as error:
            self._kill()
            self._started.set_exception(error)
            return
        try:
            while self._broken is None:
                try:
                    handle = self._queue.get(timeout=PULSE_S)
                except queue.Empty:
                    self._drop_late()
                    self._idle()
                    continue
                if handle is None:
                    break
                with self._waiting_lock:
                    self._waiting.remove(handle)
                if handle._start() and not self._ended_before(handle):
                    self._running = handle
                    handle._end(self._draw(handle))
                    self._running = None
        except BaseException:
            _logger.exception("Gang %s: its thread failed", self._name)
            self._broken = self._broken or "the gang's thread failed; the log has the reason"
        finally:
            self._give_up()

    def _draw(self, handle: JobHandle) -> JobOutput | Exception:
        told = 0

        def tell(events: list[Progress]) -> None:
            nonlocal told  # a job drawn again does not tell its first steps twice
            for event in events:
                if handle.on_progress is not None and event.step > told:
                    told = event.step
                    handle.on_progress(event)

        for attempt in range(1, _ATTEMPTS + 1):
            began = time.monotonic()
            try:
                return self._attempt(handle, tell)
            except Fault as fault:
                now = time.monotonic()
                ended = self._ended_before(handle)
                if ended is None and attempt == _ATTEMPTS:
                    # A job under which two gangs broke is the likelier culprit: nobody should be told to send it again.
                    ended = JobFailed(f"{fault}; it was drawn {_ATTEMPTS} times")
                elif ended is None and handle._late(now + self._load_s + now - began):
                    ended = GangRestarting(f"{fault}; there is no time to draw it again", retry_after_s=self._load_s)
                handle._pause()
                if ended is not None:
                    handle._end(ended)  # now, and not when the new ranks are there
                if not self._recover(fault):
                    return GangRestarting(f"{fault}; the replica is being replaced", _REPLACED_S)
                if not handle._start() or (ended := self._ended_before(handle)):
                    return ended or JobCancelled(handle.reason)
                _logger.warning("Gang %s: drawing job %s again", self._name, handle.job.id)
        raise AssertionError("unreachable")

    def _attempt(self, handle: JobHandle, tell: Callable[[list[Progress]], None]) -> JobOutput | Exception:
        job, actors = handle.job, self._actors
        self._patience.begin()
        pending = actors.generate(job)
        results: dict[int, Any] = {}
        failed_at, aborted = None, False
        while pending:
            done, _ = ray.wait(list(pending), timeout=PULSE_S / 2)
            for ref in done:
                rank = pending.pop(ref)
                try:
                    results[rank] = ray.get(ref)
                except RayActorError:
                    raise Fault("death", f"rank {rank} died in job {job.id}") from None
                except RayTaskError as error:
                    raise Fault("error", f"rank {rank}: {error.cause}") from None
                if isinstance(results[rank], Failure):
                    failed_at = failed_at or time.monotonic()
            now = time.monotonic()
            failure = next((r for r in results.values() if isinstance(r, Failure)), None)
            if pending and failure is not None and now - failed_at > self._grace(failure):
                raise Fault("error", f"{failure} (on {len(results)} of {len(results) + len(pending)} ranks)")
            events = actors.beat(self._patience.seconds(job, actors.pulses[0].phase))
            if actors.pulses[0].job == job.id:
                self._patience.learn(job, actors.pulses[0].step)
            tell(events)
            self._drop_late()
            if not aborted and (handle.reason is not None or handle._late(now)):
                aborted = True
                actors.abort(job.id)
        failures = [result for result in results.values() if isinstance(result, Failure)]
        if not failures:
            output, rest = results[0]
            self._patience.finished(job, output.denoise_s)
            tell(actors.last_news())
            tell(rest)
            return output
        return self._judge(handle, failures, len(results))

    def _judge(self, handle: JobHandle, failures: list[Failure], ranks: int) -> Exception:
        """Every rank answered, some with a failure: the job's error if all agree, else a fault of the gang."""
        first = failures[0]
        alike = len(failures) == ranks and len({failure.place for failure in failures}) == 1
        # Rank 0 decodes alone: the others are done and wait for nothing.
        if first.kind == "group" or not (alike or first.phase == "decode"):
            raise Fault("error", "; ".join(dict.fromkeys(str(failure) for failure in failures)))
        if first.kind == "aborted":
            return self._ended_before(handle) or JobCancelled(first.message)
        _logger.error("Job %s failed:\n%s", handle.job.id, first.trace)
        return JobFailed(str(first))

    def _grace(self, failure: Failure) -> float:
        """Seconds the other ranks get to raise the same: until their first collective they may be far apart."""
        lockstep = failure.phase == "denoise" and failure.step > 0
        return _GRACE_S if lockstep else self._settings.reliability.watchdog_floor_s

    def _ended_before(self, handle: JobHandle) -> Exception | None:
        """Why a job is over without a picture, if it is; ends it."""
        outcome: Exception | None = None
        if handle.reason is not None:
            outcome = JobCancelled(handle.reason)
        elif handle._late(time.monotonic()):
            outcome = DeadlineExceeded(f"the deadline of job {handle.job.id} passed")
        if outcome is not None:
            handle._end(outcome)
        return outcome

    def _drop_late(self) -> None:
        """Queued jobs whose deadline passed end now, not when their turn comes."""
        now = time.monotonic()
        with self._waiting_lock:
            late = [handle for handle in self._waiting if handle._late(now) and not handle.future.done()]
        for handle in late:
            self._ended_before(handle)

    def _tick(self) -> None:
        """While new ranks load: deadlines still count, for the job that shall be drawn again too."""
        self._drop_late()
        if self._running is not None and self._running._late(time.monotonic()):
            self._ended_before(self._running)

    def _idle(self) -> None:
        try:
            self._actors.beat(None)
        except Fault as fault:
            self._recover(fault)

    # --- faults -----------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        began = time.monotonic()
        self._actors = RankActors(self._settings, self._placement_group, self._first_bundle, self._name)
        self._source, self._facts = self._actors.load(self._source, self._tick)
        self._patience.forget()
        for shape in self._settings.warmup:
            self._warm_up(shape)
        self._load_s = time.monotonic() - began
        self._ready = True
        _logger.info("Gang %s: %s ready in %.1f s", self._name, self._facts, self._load_s)

    def _warm_up(self, shape: WarmupShape) -> None:
        """Draw a declared shape, past the cache's warm-up: no user waits for a compiler, nor the watchdog."""
        width, height = (int(side) for side in shape.size.split("x"))
        options = self._settings.cache
        job = Job(
            id=f"warm-up-{shape.size}",
            prompt="warm-up",
            width=width,
            height=height,
            seeds=tuple(range(shape.n)),
            num_inference_steps=max(shape.num_inference_steps, beyond_warmup(options)),
            guidance_scale=self._settings.defaults.guidance_scale,
            cache=options,
        )
        try:
            outcome = self._attempt(JobHandle(job, None, None), lambda events: None)
        except Fault as fault:
            outcome = fault
        if isinstance(outcome, Exception):
            raise GangStartError(f"gang {self._name} could not draw its warm-up picture {shape.size}: {outcome}")

    def _recover(self, fault: Fault) -> bool:
        """Kill all ranks and build the gang anew, in the same placement group; False when it gives up."""
        noticed = time.monotonic()
        self._ready = False
        self._faults.append(f"{fault.kind}: {fault}")
        _logger.error("Gang %s: %s (%s); killing all ranks", self._name, fault, fault.kind)
        if fault.kind == "hang":
            self._actors.dump_stacks()
        while True:
            self._kill()
            limits = self._settings.reliability
            self._restarts.append(time.monotonic())
            recent = [at for at in self._restarts if at > time.monotonic() - limits.restart_window_s]
            if len(recent) > limits.max_restarts:
                self._broken = (
                    f"gang {self._name}: {len(recent) - 1} restarts within {limits.restart_window_s:g} s "
                    f"(reliability.max_restarts = {limits.max_restarts}); last fault: {fault}"
                )
                _logger.error("%s; asking for a new replica", self._broken)
                return False
            try:
                self._spawn()
            except GangStartError as error:
                _logger.error("Gang %s: restart failed: %s", self._name, error)
                continue
            self._recovery_s = time.monotonic() - noticed
            _logger.warning("Gang %s: ready again after %.1f s", self._name, self._recovery_s)
            return True

    def _kill(self) -> None:
        if self._actors is not None:
            self._actors.kill()

    def _give_up(self) -> None:
        """The thread ends: the ranks go, and nobody waits for an answer that cannot come."""
        self._ready = False
        self._kill()
        with self._waiting_lock:
            left, self._waiting = self._waiting, []
            self._broken = self._broken or f"gang {self._name} is shut down"
        for handle in [*left, *([self._running] if self._running else [])]:
            handle._end(GangRestarting(self._broken, retry_after_s=10.0))
