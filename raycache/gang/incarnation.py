"""One incarnation of a gang's ranks: spawned, joined, loaded, warmed up, and working until a fault."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raycache.gang.agreement import agreed, of_all
from raycache.gang.costs import Costs, work_of
from raycache.gang.rank_processes import RankProcesses
from raycache.gang.step_timeouts import StepTimeouts
from raycache.gang.warmup import WarmUp, warm_ups
from raycache.gang.worker_group import HEARTBEAT_S, Fault, WorkerGroup
from raycache.logs import about
from raycache.protocol.capabilities import Capabilities, ModelSource
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job, JobOutput
from raycache.protocol.job_errors import GangStartError, JobFailed
from raycache.protocol.tick import Tick, TickReport
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings

__all__ = ["Incarnation"]

_logger = logging.getLogger("raycache.gang")

#: Seconds that ranks in lockstep get to raise the same error, before it counts as one rank's only.
_GRACE_S = 1.0


class Incarnation:
    """Used by the gang's thread only, except :meth:`ranks`.

    Args:
        settings: the application's.
        processes: the source of the ranks' processes.
        name: of the gang, for logs.
        tick: called about every :data:`HEARTBEAT_S` while ranks load or work.
        costs: the gang's learned costs, from earlier incarnations and this one.

    Attributes:
        free_bytes: free memory of the fullest rank's device after the warm-up; None without device memory.
    """

    def __init__(
        self,
        settings: AppSettings,
        processes: RankProcesses,
        name: str,
        tick: Callable[[], None],
        costs: Costs | None = None,
    ) -> None:
        self._settings, self._name, self._tick = settings, name, tick
        self._costs = Costs() if costs is None else costs
        self._actors = WorkerGroup(settings, processes, name)
        self.timeouts = StepTimeouts(settings.reliability, self._costs)
        self._warmup_s = 0.0
        self.free_bytes: int | None = None
        self._sent: deque[tuple[Tick, dict[Any, int]]] = deque()
        self._drawing: dict[str, Job] = {}
        self._number = 0

    def assemble(self, source: ModelSource | None, timeout_s: float) -> tuple[ModelSource, Capabilities]:
        """Join the ranks, load the model, generate the declared warm-up shapes.

        Args:
            source: the model loaded in an earlier incarnation; None = ask rank 0.
            timeout_s: until the model must be loaded.

        Raises:
            GangStartError: why, and what to change.
        """
        source, model = self._actors.load(source, self._tick, timeout_s)
        began = time.monotonic()
        self._costs.meet(model, self._settings.parallel.ranks_per_replica)
        for warm_up in warm_ups(self._settings, model, probe=not self._costs.known):
            self._warm_up(warm_up)
        self.free_bytes = self._actors.settle(self._tick)
        self._warmup_s = time.monotonic() - began
        return source, model

    @property
    def stages(self) -> dict[str, float]:
        """Seconds that :meth:`assemble` took, by stage; compilation happens during the warm-up."""
        stages = self._actors.stages
        return {**stages, "warm-up": max(0.0, self._warmup_s - stages.get("compile", 0.0))}

    @property
    def gpus(self) -> list[Sequence[str]]:
        """GPUs of each rank, as Ray numbers them on its node."""
        return self._actors.gpus

    def send(self, tick: Tick) -> None:
        """Let all ranks carry out ``tick``, after all earlier ones."""
        self._drawing |= {job.id: job for job in tick.start}
        if not self._sent:  # otherwise they are working already
            self._actors.detector.work_sent(time.monotonic())
        self._sent.append((tick, self._actors.tick(tick)))

    def receive(self, meanwhile: Callable[[], float] = lambda: math.inf, *, cold: bool = False) -> TickReport:
        """Wait for the oldest tick sent, and watch the ranks meanwhile.

        Args:
            meanwhile: called repeatedly; returns the seconds within which it must be called again.
            cold: a job of the warm-up is running.

        Returns:
            Rank 0's report with the images of all ranks; all agree about what they do in lockstep.

        Raises:
            Fault: these ranks are unusable from now on.
        """
        tick, pending = self._sent[0]
        reports: dict[int, TickReport] = {}
        failed_at: float | None = None
        while pending:
            wait_s = min(HEARTBEAT_S / 2, meanwhile())
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=wait_s)
            for ref in done:
                rank = pending.pop(ref)
                reports[rank] = self._answer(ref, rank)
                if of_all(reports[rank]):
                    failed_at = failed_at or time.monotonic()
            failure = next((failures[0] for report in reports.values() if (failures := of_all(report))), None)
            if pending and failure and failed_at and time.monotonic() - failed_at > self._grace(failure):
                raise Fault("error", f"{failure} (on {len(reports)} of {len(reports) + len(pending)} ranks)")
            self._actors.poll(self._patience_s(cold=cold))
            self._tick()
        self._sent.popleft()
        told = agreed([reports[rank] for rank in sorted(reports)])
        over = [
            *tick.abort,
            *told.outputs,
            *(id for failure in told.failures if failure.kind == "error" for id in failure.jobs),
        ]
        for id in over:
            self._drawing.pop(id, None)
        return told

    def _answer(self, ref: Any, rank: int) -> TickReport:
        try:
            report: TickReport = ray.get(ref)
        except DEATHS as error:
            jobs = ", ".join(self._drawing)
            raise Fault("death", f"rank {rank} died in job {jobs} ({type(error).__name__})") from None
        except RayTaskError as error:
            raise Fault("error", f"rank {rank}: {error.cause}") from None
        return report

    def _patience_s(self, *, cold: bool) -> float:
        """How long the ranks may show no progress, given the phase of each working rank."""
        known = [rank.known for rank in self._actors.detector.ranks]
        # Some ranks decode while others are idle, or wait for them in their next call.
        working = [each for each in known if each.phase != "idle"] or known[:1]
        drawing = list(self._drawing.values())
        return max(
            self.timeouts.seconds(
                [self._drawing[id] for id in each.jobs if id in self._drawing] or drawing, each.phase, cold=cold
            )
            for each in working
        )

    def idle(self) -> None:
        """Watch the ranks while they are idle.

        Raises:
            Fault: a rank died or does not answer.
        """
        self._actors.poll(None)

    def end(self, *, stacks: bool = False) -> None:
        """Kill all ranks and wait until they are gone; with ``stacks`` their Python stacks go to the log first."""
        if stacks:
            self._actors.dump_stacks()
        self._actors.kill()

    def ranks(self) -> list[dict[str, Any]]:
        """Each rank's last heartbeat, and its age in seconds. Thread-safe, calls no rank."""
        ranks, detector = [], self._actors.detector
        for rank, (progress, age) in enumerate(zip(detector.ranks, detector.ages(time.monotonic()), strict=True)):
            known = {} if progress.heartbeat is None else asdict(progress.heartbeat)
            ranks.append({"rank": rank, **known, "age_s": round(age, 3)})
        return ranks

    def _warm_up(self, warm_up: WarmUp) -> None:
        job = warm_up.job
        try:
            outcome = self._alone(job)
        except Fault as fault:
            outcome = fault
        if isinstance(outcome, Exception):
            raise GangStartError(f"gang {self._name} could not generate its warm-up image {job.size}: {outcome}")
        self.timeouts.finished(job, outcome.denoise_s)
        if warm_up.teaches:
            self._costs.learn(work_of(job), outcome, cold=True)

    def _alone(self, job: Job) -> JobOutput | Exception:
        """Run ``job`` alone."""
        done, first = False, True
        while True:
            tick = Tick(
                self._number,
                self._number - 1,
                start=(job,) if first else (),
                calls=() if done else ((job.id,),),
                end=(job.id,) if done else (),
            )
            self._number, first = self._number + 1, False
            self.send(tick)
            report = self.receive(cold=True)
            if report.failures:
                _logger.error("Job %s failed:\n%s", job.id, report.failures[0].trace, extra=about(job))
                return JobFailed(str(report.failures[0]))
            if report.outputs:
                return report.outputs[job.id]
            done = done or job.id in report.done

    @property
    def ticks(self) -> int:
        """Number of ticks sent in the warm-up, which is the number of the next one."""
        return self._number

    def _grace(self, failure: Failure) -> float:
        """Seconds that other ranks get to raise the same error: before their first collective they may be far apart."""
        lockstep = failure.phase == "denoise" and failure.step > 0
        return _GRACE_S if lockstep else self._settings.reliability.watchdog_floor_s
