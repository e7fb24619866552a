"""The supervised group of rank actors that works on many jobs step by step, detects faults, and rebuilds itself.

All rank calls are submitted by one plain ``threading.Thread`` fed by a queue. Serve cancels a request's
child tasks recursively, by context; this thread's tasks belong to no request, so no cancel can hit some ranks only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from raycache.gang.active_jobs import ActiveJobs, rules_of
from raycache.gang.costs import Costs
from raycache.gang.incarnation import Incarnation
from raycache.gang.outlook import Outlook
from raycache.gang.queue import JobHandle, JobQueue
from raycache.gang.rank_processes import RankProcesses
from raycache.gang.recovery import Restarts, retry_decision
from raycache.gang.states import GangLifecycle, GangState
from raycache.gang.worker_group import HEARTBEAT_S, Fault
from raycache.logs import about
from raycache.protocol.capabilities import Capabilities, ModelSource
from raycache.protocol.job import GangStatus, Job, Progress
from raycache.protocol.job_errors import GangBroken, GangRestarting, GangStartError
from raycache.protocol.tick import TickReport
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
        on_tick: called by the gang's thread with each executed tick, once all ranks have reported it.

    Attributes:
        costs: the costs of its jobs, learned over all incarnations of its ranks.
    """

    def __init__(
        self,
        settings: AppSettings,
        placement_group: Any = None,
        *,
        name: str,
        first_bundle: int = 0,
        on_tick: Callable[[TickReport], None] | None = None,
    ) -> None:
        self._settings, self._name, self._queue = settings, name, JobQueue()
        self._processes = RankProcesses(settings, placement_group, first_bundle, name)
        self._on_tick = on_tick
        self.costs = Costs()
        self._life: Incarnation | None = None
        self._source: ModelSource | None = None
        self._model: Capabilities | None = None
        self._stages: dict[str, float] = {}
        self._jobs = ActiveJobs(self.costs, rules_of(settings))
        self._lifecycle, self._restarts, self._rebuilds = GangLifecycle(), Restarts(settings.reliability), Rebuilds()
        self._retries: Counter[str] = Counter()  # by kind of fault
        self._started: Future[Capabilities] = Future()
        self._thread = threading.Thread(target=self._main, name=f"gang-{name}", daemon=True)

    def start(self) -> None:
        """Spawn the ranks, join them, load the model, generate the declared warm-up shapes. Blocks until ready.

        Raises:
            GangStartError: why, and what to change.
        """
        self._thread.start()
        self._started.result()

    def submit(
        self,
        job: Job,
        *,
        deadline: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        caller: str = "",
        weight: float = 1.0,
    ) -> JobHandle:
        """Queue a job.

        Args:
            job: its id must differ from those of all unfinished jobs.
            deadline: ``time.monotonic()`` after which it is dropped; by the next tick if it is running.
            on_progress: called by the gang's thread for each denoising step, once its tick is reported.
            caller: its caller; the gang's time is shared between callers.
            weight: of this caller relative to others.
        """
        handle = JobHandle(job, deadline, on_progress, caller, weight)
        if self._lifecycle.broken or not self._thread.is_alive() or not self._queue.put(handle):
            handle.end(GangRestarting(self._lifecycle.why or "this gang is shut down", self._rebuilds.replaced_s))
        return handle

    def status(self) -> GangStatus:
        """The gang's status according to the last heartbeats."""
        life = self._life
        return GangStatus(
            name=self._name,
            ready=self._lifecycle.ready,
            restarts=self._restarts.count,
            queued=len(self._queue),
            jobs=self._jobs.active,
            progress=self._jobs.progress,
            retries=self._retries.total(),
            retry_causes=dict(self._retries),
            causes=self._restarts.causes,
            ranks=life.ranks() if life else [],
            faults=self._restarts.faults[-10:],
            last_recovery=self._restarts.last,
            stages=self._stages,
            ready_in_s=0.0 if self._lifecycle.broken else self._rebuilds.left_s(),
        )

    def check_health(self) -> None:
        """Raises GangBroken when the gang has given up; a gang that is being rebuilt is healthy."""
        if self._lifecycle.broken:
            raise GangBroken(self._lifecycle.why)
        if self._started.done() and not self._thread.is_alive():
            raise GangBroken(f"gang {self._name}: its thread has ended")

    def capabilities(self) -> Capabilities:
        """Those of the loaded model; only after :meth:`start`."""
        assert self._model is not None, f"gang {self._name} has not been started"
        return self._model

    def outlook(self) -> Outlook:
        """Its jobs and their progress."""
        ready_in_s = 0.0 if self._lifecycle.broken else self._rebuilds.left_s()
        return replace(self._jobs.outlook, ready_in_s=ready_in_s)

    def hand_back(self) -> int:
        """End all queued jobs with GangRestarting, so that another replica may run them; return their number."""
        waiting = self._queue.waiting()
        for handle in waiting:
            handle.end(GangRestarting("this replica is being stopped", self._rebuilds.replaced_s))
        return len(waiting)

    def shutdown(self, drain_s: float = 0) -> None:
        """End the ranks; queued jobs get up to ``drain_s`` seconds to finish, then GangRestarting."""
        end = time.monotonic() + drain_s
        while self._queue.open() and time.monotonic() < end and self._thread.is_alive():
            time.sleep(0.05)
        self._queue.stop()
        self.hand_back()
        for handle in self._queue.open():
            handle.abort("the replica is shutting down")
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def _alive(self) -> Incarnation:
        assert self._life is not None  # spawned before any job runs
        return self._life

    def _main(self) -> None:
        try:
            self._spawn()
            self._started.set_result(self.capabilities())
        except BaseException as error:
            try:
                if self._life is not None:
                    self._life.end()
                self._processes.end()
            finally:
                self._started.set_exception(error)
            return
        try:
            while not self._lifecycle.broken and not (self._queue.stopped and not self._queue.open()):
                try:
                    self._work()
                except Fault as fault:
                    self._met(fault)
        except BaseException:
            _logger.exception("Gang %s: its thread failed", self._name)
            self._lifecycle.break_down("the gang's thread failed; the log has the reason")
        finally:
            self._give_up()

    def _work(self) -> None:
        """Send the next ticks, and wait for the oldest one sent."""
        life = self._alive
        self._queue.drop_late()
        self._jobs.send(self._queue.open, life.send)
        if not self._jobs.in_flight:
            life.idle()
            self._queue.wait(HEARTBEAT_S)
            return
        report = life.receive(lambda: self._jobs.send(self._queue.open, life.send))
        if self._on_tick is not None:
            self._on_tick(report)
        for handle, output in self._jobs.came(report, life.timeouts):
            output.after_fault_s = self._restarts.drawn()
            handle.end(output)

    def _met(self, fault: Fault) -> None:
        """Rebuild the ranks, and rerun their active jobs."""
        load_s = self._rebuilds.expected_s
        lost = self._jobs.lost()
        for handle in lost:
            took_s = time.monotonic() - (handle.begun or handle.arrived)
            ended = retry_decision(handle, fault, took_s=took_s, load_s=load_s)
            handle.pause()
            if ended is not None:
                handle.end(ended)  # immediately, without waiting for the new ranks
        if not self._recover(fault):
            for handle in lost:
                handle.end(GangRestarting(f"{fault}; the replica is being replaced", self._rebuilds.replaced_s))
            return
        for handle in lost:
            if not handle.future.done():
                self._retries[fault.kind] += 1
                _logger.warning("Gang %s: rerunning job %s", self._name, handle.job.id, extra=about(handle.job))

    def _spawn(self) -> None:
        began, settings = time.monotonic(), self._settings
        limits = settings.parallel.startup_timeout_s, settings.reliability.watchdog_first_s
        # Deadlines also apply while ranks load or work, and to jobs that will be rerun.
        self._life = Incarnation(settings, self._processes, self._name, self._queue.drop_late, self.costs)
        self._source, self._model = self._life.assemble(self._source, self._rebuilds.patience_s(*limits))
        self._rebuilds.started(load_s := time.monotonic() - began)
        self._jobs.begin(self._life.ticks, self._life.free_bytes)
        self._lifecycle.enter(GangState.READY)
        self._stages = self._life.stages
        _logger.info("Gang %s: %s ready in %.1f s (%s)", self._name, self._model, load_s, _told(self._stages))
        self._processes.keep_spares(self._life.gpus, self._source)

    def _recover(self, fault: Fault) -> bool:
        """Kill all ranks and rebuild the gang in the same placement group; False if it gives up."""
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
        """The thread ends: kill the ranks, and end every job, because none can be answered any more."""
        self._lifecycle.enter(GangState.CLOSING)
        try:
            self._alive.end()
        finally:
            self._processes.end()
            self._lifecycle.break_down(f"gang {self._name} is shut down")
            for handle in self._queue.close():
                handle.end(GangRestarting(self._lifecycle.why, self._rebuilds.replaced_s))


def _told(stages: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items())
