"""The rank actors of one gang incarnation: started, watched and killed together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import ray
from ray.exceptions import RayTaskError

from raycache.gang.cpu_wait import cpu_wait_s
from raycache.gang.hang_detector import HangDetector
from raycache.gang.rank_processes import RankProcesses, end_processes
from raycache.protocol.capabilities import Capabilities, ModelSource
from raycache.protocol.heartbeat import Heartbeat
from raycache.protocol.job_errors import GangStartError
from raycache.protocol.tick import Tick
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings

__all__ = ["HEARTBEAT_S", "IDLE_HEARTBEAT_S", "Fault", "WorkerGroup"]

_logger = logging.getLogger("raycache.gang")

#: Seconds between two heartbeats of a rank: how soon a hang or the death of an idle rank is noticed. Idle ranks are
#: asked less often: each answer costs milliseconds of CPU, and no job waits for it.
HEARTBEAT_S, IDLE_HEARTBEAT_S = 0.2, 0.5
#: Seconds that the ranks get to write their stacks.
_STACKS_S = 2.0


class Fault(Exception):
    """The ranks cannot continue: ``kind`` is ``death``, ``hang`` or ``error`` (one rank raised, or the group broke)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class WorkerGroup:
    """One set of rank actors. Used by the gang's thread only, except :attr:`detector`, which any thread may read.

    Args:
        settings: the application's.
        processes: the source of the ranks' processes.
        name: of the gang, for logs.

    Attributes:
        stages: seconds that :meth:`load` and :meth:`settle` took, by stage.
        detector: each rank's last heartbeat, and which rank hangs.
    """

    def __init__(self, settings: AppSettings, processes: RankProcesses, name: str) -> None:
        self._settings, self._name, self._workers = settings, name, processes.take()
        self.stages: dict[str, float] = {}
        floor_s = settings.reliability.watchdog_floor_s
        self.detector = HangDetector(len(self._workers), floor_s, cpu_wait_s, time.monotonic())

    def load(
        self, source: ModelSource | None, tick: Callable[[], None], timeout_s: float
    ) -> tuple[ModelSource, Capabilities]:
        """Rendezvous and load the model on all ranks.

        Args:
            source: the earlier result of :func:`raycache.models.loading.prepare_model`; None = call it on rank 0.
            tick: called every :data:`HEARTBEAT_S` while waiting.
            timeout_s: for all of this together.

        Raises:
            GangStartError: a rank failed, died, or took too long; the message says which and why.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        actors = [worker.actor for worker in self._workers]
        # Heartbeats first: once a rank's process id is known, it can be killed reliably.
        heartbeats = self._all([actor.heartbeat.remote() for actor in actors], deadline, "start", tick)
        self.detector.introduce(heartbeats)
        started = time.monotonic()
        source = source or self._all([actors[0].prepare.remote()], deadline, "find the model", tick)[0]
        port = self._all([actors[0].open_store.remote()], deadline, "open the rendezvous", tick)[0]
        self._all([actor.join.remote(port) for actor in actors], deadline, "join the process group", tick)
        joined = time.monotonic()
        loaded = self._all([actor.load.remote(*source) for actor in actors], deadline, "load the model", tick)
        heartbeats = self._all([actor.heartbeat.remote() for actor in actors], deadline, "answer", tick)
        # The slowest rank's seconds of each stage: the others wait for it.
        slowest = {stage: max(each.stages[stage] for each in loaded) for stage in loaded[0].stages}
        self.stages = {"processes": started - began, "rendezvous": joined - started, **slowest}
        self.detector.loaded(heartbeats, time.monotonic())
        return source, loaded[0].model

    def settle(self, tick: Callable[[], None]) -> int | None:
        """The warm-up is over; see :meth:`raycache.worker.rank.Rank.settle`. Returns the least free memory."""
        actors = [worker.actor for worker in self._workers]
        settled = self._all([actor.settle.remote() for actor in actors], time.monotonic() + 60, "settle", tick)
        self.stages["compile"] = max(each.compile_s for each in settled)
        return min((each.free_bytes for each in settled if each.free_bytes is not None), default=None)

    @property
    def gpus(self) -> list[Sequence[str]]:
        """GPUs of each rank, as Ray numbers them on its node. Needs heartbeats."""
        return [rank.known.gpus for rank in self.detector.ranks]

    def tick(self, tick: Tick) -> dict[Any, int]:
        """Send the same tick to all ranks; returns references to their reports, with the rank of each."""
        return {worker.actor.tick.remote(tick): rank for rank, worker in enumerate(self._workers)}

    def poll(self, step_timeout_s: float | None) -> None:
        """Collect heartbeats that have arrived, and request new ones.

        Args:
            step_timeout_s: how long a working rank may show no progress; None = idle.

        Raises:
            Fault: a rank died, does not answer, or shows no progress.
        """
        now = time.monotonic()
        interval_s = IDLE_HEARTBEAT_S if step_timeout_s is None else HEARTBEAT_S
        for rank, worker in enumerate(self._workers):
            if worker.asked is not None and ray.wait([worker.asked], timeout=0)[0]:
                self._take(rank, worker.asked, now)
            if worker.asked is None and now - worker.asked_at >= interval_s:
                worker.asked, worker.asked_at = worker.actor.heartbeat.remote(), now
        if (hang := self.detector.hang(now, step_timeout_s)) is not None:
            raise Fault("hang", hang)

    def dump_stacks(self) -> None:
        """Write the Python stacks of all ranks to the log. Ranks share this process's node (STRICT_PACK)."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGUSR1)
        sizes, end = None, time.monotonic() + _STACKS_S
        while sizes != (sizes := [worker.stacks.size() for worker in self._workers]) or not any(sizes):
            if time.monotonic() > end:
                break
            time.sleep(0.3)
        for rank, worker in enumerate(self._workers):
            stacks = worker.stacks.read() or self._no_stacks(rank)
            _logger.error("Stacks of rank %d of %s:\n%s", rank, self._name, stacks)

    def kill(self) -> None:
        """Kill all ranks and wait until their processes have ended and their GPU memory is free."""
        end_processes([worker.actor for worker in self._workers], self._pids(), self._name)
        for worker in self._workers:
            worker.stacks.close()

    def _pids(self) -> list[int]:
        """The process ids that are known, from heartbeats or from when the ranks were spares."""
        told = {rank.heartbeat.pid for rank in self.detector.ranks if rank.heartbeat is not None}
        return sorted(told | {worker.pid for worker in self._workers if worker.pid is not None})

    def _take(self, rank: int, asked: ray.ObjectRef[Heartbeat], now: float) -> None:
        try:
            heartbeat = ray.get(asked)
        except DEATHS as error:
            raise Fault("death", f"rank {rank} died: {_first_line(error)}") from None
        except RayTaskError as error:
            raise Fault("error", f"the heartbeat of rank {rank} failed: {error.cause}") from None
        self._workers[rank].asked = None
        self.detector.heard(rank, heartbeat, now)

    def _all(self, refs: list[ray.ObjectRef[Any]], deadline: float, what: str, tick: Callable[[], None]) -> list[Any]:
        try:
            pending = list(refs)
            results: dict[ray.ObjectRef[Any], Any] = {}
            while pending:
                # One rank's error must be seen before the others end: they may be waiting for that rank.
                done, pending = ray.wait(pending, timeout=HEARTBEAT_S)
                tick()
                if not done and time.monotonic() > deadline:
                    raise GangStartError(
                        f"gang {self._name}: {len(pending)} of {len(refs)} ranks did not {what} in time; a first start "
                        f"may take {self._settings.parallel.startup_timeout_s:g} s (parallel.startup_timeout_s)"
                    )
                results.update((ref, ray.get(ref)) for ref in done)
            return [results[ref] for ref in refs]
        except RayTaskError as error:
            cause = error.cause
            raise GangStartError(f"gang {self._name} could not {what}: {type(cause).__name__}: {cause}") from None
        except DEATHS as error:
            raise GangStartError(
                f"gang {self._name}: a rank died when it had to {what} (out of memory?): {_first_line(error)}"
            ) from None

    def _no_stacks(self, rank: int) -> str:
        try:
            return f"none written; the process is {psutil.Process(self.detector.ranks[rank].known.pid).status()}"
        except psutil.Error:
            return "none written; the process has ended"


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
