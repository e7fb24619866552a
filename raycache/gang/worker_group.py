"""The rank actors of one gang incarnation: born together, watched together, killed together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raycache.gang.placement import rank_bundle_index
from raycache.gang.stacks import StacksFile
from raycache.gang.starvation import run_delay_s
from raycache.protocol.heartbeat import Pulse
from raycache.protocol.job import GangStartError, Job, ModelFacts, ModelSource, Progress
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings
from raycache.worker.actor import start_rank

__all__ = ["PULSE_S", "Fault", "RankActors"]

_logger = logging.getLogger("raycache.gang")

#: Seconds between two pulses of a rank: how soon a death is seen, and how late progress may be told.
PULSE_S = 0.2
#: Patience with ranks that get no CPU is so many times longer at most: their threads' waits are summed, a bit too much.
_STARVED_TIMES = 6.0
#: Seconds the ranks get to write their stacks.
_STACKS_S = 2.0


class Fault(Exception):
    """The gang cannot go on: ``kind`` is ``death``, ``hang`` or ``error`` (one rank raised, or the group broke)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class RankActors:
    """One set of rank actors. Used by the gang's thread only, but for :attr:`pulses`, which anyone may read.

    Args:
        settings: the application's.
        placement_group: reserved for the gang; None = anywhere.
        first_bundle: where the gang's bundles begin in it.
        name: of the gang, for logs.
    """

    def __init__(self, settings: AppSettings, placement_group: Any, first_bundle: int, name: str) -> None:
        self._settings, self._name = settings, name
        world = settings.parallel.ranks_per_replica
        self.pulses: list[Pulse | None] = [None] * world
        self._stacks = [StacksFile() for _ in range(world)]
        self._actors = []
        for rank in range(world):
            options: dict[str, Any] = {
                "num_cpus": settings.parallel.rank_cpus,
                "num_gpus": settings.parallel.gpus_per_rank,
            }
            if placement_group is not None:
                options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                    placement_group, placement_group_bundle_index=rank_bundle_index(rank, first_bundle)
                )
            self._actors.append(start_rank(options, settings, rank, self._stacks[rank].path))
        #: Seconds that :meth:`load` took, by stage; "processes" is mostly Python importing its libraries.
        self.stages: dict[str, float] = {}
        self._asked: list[Any] = [None] * world
        self._answered, self._changed = [time.monotonic()] * world, [time.monotonic()] * world
        self._sent = [0.0] * world
        #: Seconds each rank had waited for a CPU when it last answered, and when it last showed progress.
        self._starved_answered, self._starved_changed = [0.0] * world, [0.0] * world

    def load(
        self, source: ModelSource | None, tick: Callable[[], None], timeout_s: float
    ) -> tuple[ModelSource, ModelFacts]:
        """Rendezvous and load the model on all ranks.

        Args:
            source: what :func:`raycache.models.loading.prepare_model` said before; None = ask it, on rank 0.
            tick: called every :data:`PULSE_S` meanwhile.
            timeout_s: for all of it.

        Raises:
            GangStartError: a rank failed, died, or took too long; the message says which and why.
        """
        began = time.monotonic()
        deadline = began + timeout_s
        first = self._actors[0]
        # The pulses first: whoever has told its process id can be killed for certain.
        pulses = self._all([actor.pulse.remote() for actor in self._actors], deadline, "start", tick)
        self.pulses = list(pulses)
        started = time.monotonic()
        source = source or self._all([first.prepare.remote()], deadline, "find the model", tick)[0]
        port = self._all([first.open_store.remote()], deadline, "open the rendezvous", tick)[0]
        self._all([actor.join.remote(port) for actor in self._actors], deadline, "join the process group", tick)
        joined = time.monotonic()
        facts = self._all([actor.load.remote(*source) for actor in self._actors], deadline, "load the model", tick)
        pulses = self._all([actor.pulse.remote() for actor in self._actors], deadline, "answer", tick)
        now = time.monotonic()
        self.stages = {"processes": started - began, "rendezvous": joined - started, "model": now - joined}
        self.pulses, self._answered, self._changed = list(pulses), [now] * len(pulses), [now] * len(pulses)
        return source, facts[0]

    def settle(self, tick: Callable[[], None]) -> None:
        """The warm-up is over; see :meth:`raycache.worker.rank.Rank.settle`."""
        self._all([actor.settle.remote() for actor in self._actors], time.monotonic() + 60, "settle", tick)

    def generate(self, job: Job) -> dict[Any, int]:
        """Send the same job to all ranks; the references, with the rank of each."""
        now = time.monotonic()
        self._changed, self._starved_changed = [now] * len(self._actors), list(self._starved_answered)
        return {actor.generate.remote(job): rank for rank, actor in enumerate(self._actors)}

    def abort(self, job_id: str) -> None:
        """Tell rank 0; the flag in the ranks' own all-reduce stops them all at one step."""
        self._actors[0].abort.remote(job_id)

    def beat(self, patience_s: float | None) -> list[Progress]:
        """Collect pulses that came in, ask for new ones; returns rank 0's news.

        Args:
            patience_s: how long a working rank may show no progress; None = idle.

        Raises:
            Fault: a rank died, does not answer, or shows no progress.
        """
        now = time.monotonic()
        events: list[Progress] = []
        for rank, actor in enumerate(self._actors):
            if self._asked[rank] is not None and ray.wait([self._asked[rank]], timeout=0)[0]:
                events += self._take(rank, now)
            if self._asked[rank] is None and now - self._sent[rank] >= PULSE_S:
                self._asked[rank], self._sent[rank] = actor.pulse.remote(), now
        floor = self._settings.reliability.watchdog_floor_s
        for rank, answered in enumerate(self._answered):
            if self._hangs(now - answered, floor, self._starved_answered):
                raise Fault("hang", f"{self._where(rank)} has not answered for {now - answered:.1f} s")
        # One that stands still while another comes on waits for it: only a gang in which none does is stuck.
        still, last = now - max(self._changed), self._changed.index(min(self._changed))
        if patience_s is not None and self._hangs(still, patience_s, self._starved_changed):
            raise Fault("hang", f"{self._where(last)} has made no progress for {now - self._changed[last]:.1f} s")
        return events

    def _where(self, rank: int) -> str:
        pulse = _known(self.pulses[rank])
        return f"rank {rank} (pid {pulse.pid}, {pulse.phase}, step {pulse.step})"

    def _hangs(self, seconds: float, patience_s: float, starved_before: list[float]) -> bool:
        """Whether so many seconds are too many. Those in which ranks could have run, but got no CPU, do not count."""
        if seconds <= patience_s:
            return False
        pulses = map(_known, self.pulses)
        starved = max(run_delay_s(pulse.pid) - was for pulse, was in zip(pulses, starved_before, strict=True))
        return seconds - min(starved, (_STARVED_TIMES - 1) * patience_s) > patience_s

    def last_news(self) -> list[Progress]:
        """Rank 0's progress still under way when its job ended.

        Raises:
            Fault: it has died since.
        """
        if self._asked[0] is None or not ray.wait([self._asked[0]], timeout=2)[0]:
            return []
        return self._take(0, time.monotonic())

    def ages(self) -> list[float]:
        """Seconds since each rank's last answer."""
        now = time.monotonic()
        return [now - answered for answered in self._answered]

    def dump_stacks(self) -> None:
        """Write the Python stacks of all ranks to the log. Ranks share this process's node (STRICT_PACK)."""
        for pulse in self.pulses:
            if pulse is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pulse.pid, signal.SIGUSR1)
        sizes, end = None, time.monotonic() + _STACKS_S
        while sizes != (sizes := [stacks.size() for stacks in self._stacks]) or not any(sizes):
            if time.monotonic() > end:
                break
            time.sleep(0.3)
        for rank, stacks in enumerate(self._stacks):
            _logger.error("Stacks of rank %d of %s:\n%s", rank, self._name, stacks.read() or self._no_stacks(rank))

    def kill(self) -> None:
        """End all ranks and wait until their processes, and so their GPU memory, are gone."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        alive = []
        for pulse in self.pulses:
            with contextlib.suppress(psutil.Error):
                if pulse is not None:
                    alive.append(psutil.Process(pulse.pid))
                    alive[-1].kill()  # Ray asks the process first, and a stopped one does not hear
        _, left = psutil.wait_procs(alive, timeout=5)
        for process in left:
            _logger.error("Rank process %d of %s did not end", process.pid, self._name)
        for stacks in self._stacks:
            stacks.close()

    def _take(self, rank: int, now: float) -> list[Progress]:
        try:
            pulse: Pulse = ray.get(self._asked[rank])
        except DEATHS as error:
            raise Fault("death", f"rank {rank} died: {_first_line(error)}") from None
        except RayTaskError as error:
            raise Fault("error", f"rank {rank} cannot say how it is: {error.cause}") from None
        before, starved = self.pulses[rank], run_delay_s(pulse.pid)
        if before is None or (before.job, before.phase, before.step) != (pulse.job, pulse.phase, pulse.step):
            self._changed[rank], self._starved_changed[rank] = now, starved
        self._starved_answered[rank] = starved
        self.pulses[rank], self._answered[rank], self._asked[rank] = pulse, now, None
        return pulse.events

    def _all(self, refs: list[ray.ObjectRef[Any]], deadline: float, what: str, tick: Callable[[], None]) -> list[Any]:
        try:
            pending = list(refs)
            results: dict[ray.ObjectRef[Any], Any] = {}
            while pending:
                # One rank's error must not wait for the others, which may be waiting for that rank.
                done, pending = ray.wait(pending, timeout=PULSE_S)
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
                f"gang {self._name}: a rank died while it should {what} (out of memory?): {_first_line(error)}"
            ) from None

    def _no_stacks(self, rank: int) -> str:
        try:
            return f"none written; the process is {psutil.Process(_known(self.pulses[rank]).pid).status()}"
        except psutil.Error:
            return "none written; the process is gone"


def _known(pulse: Pulse | None) -> Pulse:
    assert pulse is not None  # loading has asked them all
    return pulse


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
