"""The supervised group of rank actors that draws one job or batch at a time, notices faults, and rebuilds itself.

All rank calls are submitted by one plain ``threading.Thread`` fed by a ``queue.Queue``. Serve cancels a request's
child tasks recursively, by context; this thread's tasks belong to no request, so no cancel can hit some ranks only.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from raycache.gang.batch import JobBatch, take_mates
from raycache.gang.costs import Costs
from raycache.gang.incarnation import Incarnation
from raycache.gang.queue import JobHandle, JobQueue
from raycache.gang.recovery import ATTEMPTS, Restarts, retry_decision
from raycache.gang.states import GangLifecycle, GangState
from raycache.gang.worker_group import HEARTBEAT_S, Fault
from raycache.logs import about
from raycache.protocol.job import (
    GangBroken,
    GangRestarting,
    GangStartError,
    GangStatus,
    Job,
    JobCancelled,
    JobFailed,
    JobOutput,
    ModelFacts,
    ModelSource,
    Progress,
)
from raycache.rebuilds import Rebuilds
from raycache.settings import AppSettings

__all__ = ["Gang"]

_logger = logging.getLogger("raycache.gang")


class Gang:
    """Ranks, their queue, and the thread that owns both. Public methods are thread-safe; only ``start`` waits.

    Args:
        settings: the application's.
        placement_group: reserved with :func:`placement_bundles`; None = Ray places the ranks anywhere.
        name: for logs, e.g. the replica's id.
        first_bundle: index of the gang's first bundle in the placement group.

    Attributes:
        costs: what its jobs cost, as learned over all incarnations of its ranks.
    """

    def __init__(self, settings: AppSettings, placement_group: Any = None, *, name: str, first_bundle: int = 0) -> None:
        self._settings, self._placement_group = settings, placement_group
        self._name, self._first_bundle, self._queue = name, first_bundle, JobQueue()
        self.costs = Costs()
        self._life: Incarnation | None = None
        self._source: ModelSource | None = None
        self._facts: ModelFacts | None = None
        self._taken: JobHandle | JobBatch | None = None  # out of the queue and not answered
        self._running: JobHandle | JobBatch | None = None  # of those, what the ranks draw
        self._lifecycle, self._restarts, self._rebuilds = GangLifecycle(), Restarts(settings.reliability), Rebuilds()
        self._retries: Counter[str] = Counter()  # by kind of fault
        self._started: Future[ModelFacts] = Future()
        self._thread = threading.Thread(target=self._main, name=f"gang-{name}", daemon=True)

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
            on_progress: called by the gang's thread once per denoising step, about :data:`HEARTBEAT_S` late.
        """
        handle = JobHandle(job, deadline, on_progress)
        if self._lifecycle.broken or not self._thread.is_alive() or not self._queue.put(handle):
            handle.end(GangRestarting(self._lifecycle.why or "this gang is shut down", self._rebuilds.replaced_s))
        return handle

    def status(self) -> GangStatus:
        """Made of what the last heartbeats said."""
        life, running = self._life, self._running
        return GangStatus(
            name=self._name,
            ready=self._lifecycle.ready,
            restarts=self._restarts.count,
            queued=len(self._queue),
            job=running.job.id if running else None,
            retries=self._retries.total(),
            retry_causes=dict(self._retries),
            causes=self._restarts.causes,
            ranks=life.ranks() if life else [],
            faults=self._restarts.faults[-10:],
            last_recovery=self._restarts.last,
            ready_in_s=0.0 if self._lifecycle.broken else self._rebuilds.left_s(),
        )

    def check_health(self) -> None:
        """Raises GangBroken when the gang has given up; a gang that is being rebuilt is healthy."""
        if self._lifecycle.broken:
            raise GangBroken(self._lifecycle.why)
        if self._started.done() and not self._thread.is_alive():
            raise GangBroken(f"gang {self._name}: its thread has ended")

    def model_facts(self) -> ModelFacts:
        """Facts of the loaded model; only after :meth:`start`."""
        assert self._facts is not None, f"gang {self._name} has not been started"
        return self._facts

    def hand_back(self) -> int:
        """Answer all queued jobs GangRestarting, so that another replica may draw them; how many there were."""
        waiting = self._queue.waiting()
        for handle in waiting:
            handle.end(GangRestarting("this replica is being stopped", self._rebuilds.replaced_s))
        return len(waiting)

    def shutdown(self, drain_s: float = 0) -> None:
        """End the ranks; what is queued gets up to ``drain_s`` seconds, then GangRestarting."""
        end = time.monotonic() + drain_s
        while (self._queue or self._running) and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.05)
        self._queue.stop()
        if running := self._running:
            running.abort("the replica is shutting down")
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def _alive(self) -> Incarnation:
        assert self._life is not None  # spawned before anything is drawn
        return self._life

    def _main(self) -> None:
        try:
            self._spawn()
            self._started.set_result(self.model_facts())
        except BaseException as error:
            try:
                if self._life is not None:
                    self._life.end()
            finally:
                self._started.set_exception(error)
            return
        try:
            while not self._lifecycle.broken:
                try:
                    handle = self._queue.get(HEARTBEAT_S)
                except queue.Empty:
                    self._queue.drop_late()
                    try:
                        self._alive.idle()
                    except Fault as fault:
                        self._recover(fault)
                    continue
                if handle is None:
                    break
                self._taken = handle  # whatever happens from here on, it gets an answer
                mates = take_mates(self._queue, handle, self._settings.parallel.max_batch_size)
                self._taken = taken = JobBatch(mates) if len(mates) > 1 else handle
                outcome = self._run(taken)
                if isinstance(taken, JobBatch) and isinstance(outcome, JobFailed):
                    # What is too much together, or wrong in one of them, may be well alone.
                    taken.pause()
                    for single in taken.handles:
                        single.end(self._run(single))
                else:
                    taken.end(outcome)
                self._running = self._taken = None
        except BaseException:
            _logger.exception("Gang %s: its thread failed", self._name)
            self._lifecycle.break_down("the gang's thread failed; the log has the reason")
        finally:
            self._give_up()

    def _run(self, handle: JobHandle | JobBatch) -> JobOutput | Exception:
        ended: Exception | None = None
        if not handle.start() or (ended := handle.end_if_unwanted()):
            return ended or JobCancelled(handle.reason)
        self._running = handle
        return self._draw(handle)

    def _draw(self, handle: JobHandle | JobBatch) -> JobOutput | Exception:
        for attempt in range(1, ATTEMPTS + 1):
            began = time.monotonic()
            try:
                outcome = self._alive.draw(handle.job, handle.tell, handle.unwanted)
                if isinstance(outcome, JobCancelled):
                    return handle.end_if_unwanted() or outcome
                if isinstance(outcome, JobOutput):
                    outcome.after_fault_s = self._restarts.drawn()
                return outcome
            except Fault as fault:
                took_s, load_s = time.monotonic() - began, self._rebuilds.expected_s
                ended = retry_decision(handle, fault, attempt, took_s=took_s, load_s=load_s)
                handle.pause()
                if ended is not None:
                    handle.end(ended)  # now, and not when the new ranks are there
                if not self._recover(fault):
                    return GangRestarting(f"{fault}; the replica is being replaced", self._rebuilds.replaced_s)
                if not handle.start() or (ended := handle.end_if_unwanted()):
                    return ended or JobCancelled(handle.reason)
                self._retries[fault.kind] += 1
                if isinstance(handle, JobBatch):
                    return JobFailed(str(fault))  # one by one: the next fault is that of one of them
                _logger.warning("Gang %s: drawing job %s again", self._name, handle.job.id, extra=about(handle.job))
        raise AssertionError("unreachable")

    def _tick(self) -> None:
        """While ranks load or draw deadlines still count, also for a job that shall be drawn again."""
        self._queue.drop_late()
        if isinstance(self._taken, JobBatch):
            self._taken.end_if_unwanted()  # those drawn one by one wait like those in the queue
        if not self._lifecycle.ready and self._running is not None and self._running.late(time.monotonic()):
            self._running.end_if_unwanted()

    def _spawn(self) -> None:
        began, settings, where = time.monotonic(), self._settings, (self._placement_group, self._first_bundle)
        limits = settings.parallel.startup_timeout_s, settings.reliability.watchdog_first_s
        self._life = Incarnation(settings, *where, self._name, self._tick, self.costs)
        self._source, self._facts = self._life.assemble(self._source, self._rebuilds.patience_s(*limits))
        self._rebuilds.started(load_s := time.monotonic() - began)
        self._lifecycle.enter(GangState.READY)
        _logger.info("Gang %s: %s ready in %.1f s", self._name, self._facts, load_s)

    def _recover(self, fault: Fault) -> bool:
        """Kill all ranks and build the gang anew, in the same placement group; False when it gives up."""
        self._lifecycle.enter(GangState.RECOVERING)
        self._restarts.noticed(fault)
        self._rebuilds.begins()
        _logger.error("Gang %s: %s (%s); killing all ranks", self._name, fault, fault.kind)
        self._alive.end(stacks=fault.kind == "hang")
        while True:
            if (reason := self._restarts.refused()) is not None:
                self._lifecycle.break_down(f"gang {self._name}: {reason}; last fault: {fault}")
                _logger.error("%s; asking for a new replica", self._lifecycle.why)
                return False
            try:
                self._spawn()
            except GangStartError as error:
                _logger.error("Gang %s: restart failed: %s", self._name, error)
                self._alive.end()
                self._rebuilds.begins()
                continue
            self._rebuilds.ends()
            ready_s = self._restarts.recovered(self._alive.stages)
            _logger.warning("Gang %s: ready again after %.1f s", self._name, ready_s)
            return True

    def _give_up(self) -> None:
        """The thread ends: the ranks go, and nobody waits for an answer that cannot come."""
        self._lifecycle.enter(GangState.CLOSING)
        try:
            self._alive.end()
        finally:
            self._lifecycle.break_down(f"gang {self._name} is shut down")
            for handle in [*self._queue.close(), *([self._taken] if self._taken else [])]:
                handle.end(GangRestarting(self._lifecycle.why, self._rebuilds.replaced_s))
