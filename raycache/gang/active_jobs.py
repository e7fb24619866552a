"""The jobs of a gang between handles and ticks: planning, notifications to callers, learning of costs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from statistics import fmean, median
from typing import Literal

from raycache.gang.costs import Costs, work_of
from raycache.gang.outlook import Outlook
from raycache.gang.planner import TickPlanner
from raycache.gang.queue import JobHandle
from raycache.gang.schedule import JobState, Rules
from raycache.gang.step_timeouts import StepTimeouts
from raycache.logs import about
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import JobOutput, JobProgress
from raycache.protocol.job_errors import JobFailed, LoraNotLoaded
from raycache.protocol.tick import Called, Tick, TickReport
from raycache.settings import AppSettings

__all__ = ["ActiveJobs", "rules_of"]

_logger = logging.getLogger("raycache.gang")

#: Of the memory that is free after the warm-up, the part that jobs' caches may hold.
_FILLED = 0.8
#: Kinds of joined calls that are learned from when a job is done.
_LEARNED = 2


class ActiveJobs:
    """Used by the gang's thread only, but for :attr:`outlook`, :attr:`active` and :attr:`progress`.

    Args:
        costs: what jobs cost; finished ones teach it.
        rules: of the schedule.
    """

    def __init__(self, costs: Costs, rules: Rules) -> None:
        self._costs, self._rules = costs, rules
        self._planner = TickPlanner(costs, rules)
        self._handles: dict[str, JobHandle] = {}
        self._shared: dict[str, int] = {}  # of each job's calls, how many had others' rows
        self._others: dict[str, bool] = {}  # whether other jobs were under way meanwhile
        #: Joined calls since costs were learned last, by who is in them and what was computed.
        self._joined: dict[tuple[tuple[str, ...], float], list[Called]] = {}

    @property
    def outlook(self) -> Outlook:
        """All jobs, and how far they are."""
        return self._planner.outlook

    @property
    def active(self) -> list[str]:
        """Jobs that ranks have."""
        return list(self._planner.active)

    @property
    def progress(self) -> list[JobProgress]:
        """How far each of them is, as far as ranks have told."""
        done = {state.id: state.calls_done or 0 for state in self.outlook.jobs}
        # One that has ended since the schedule was made has no handle any more.
        jobs = [handle.job for id in self.active if (handle := self._handles.get(id)) is not None]
        return [
            JobProgress(
                str(job.size), len(job.images), min(done.get(job.id, 0) // job.calls_per_step, job.steps), job.steps
            )
            for job in jobs
        ]

    @property
    def in_flight(self) -> bool:
        """Whether the ranks have something to do."""
        return self._planner.in_flight

    def begin(self, number: int, free_bytes: int | None) -> None:
        """New ranks are ready.

        Args:
            number: of the first tick that they expect.
            free_bytes: on each rank's device; None = no bound.
        """
        memory = self._rules.memory_bytes
        if math.isinf(memory) and free_bytes is not None:
            memory = _FILLED * free_bytes
        self._planner.begin(number, replace(self._rules, memory_bytes=memory))

    def send(self, handles: Callable[[], Iterable[JobHandle]], send: Callable[[Tick], None]) -> float:
        """Send what the ranks are to do next, beyond what was sent, if it is time to.

        Args:
            handles: all jobs that are not over.

        Returns:
            Seconds until there may be more to send, if no tick comes back before.
        """
        if self._planner.next_in_s(now := time.monotonic()) <= 0:
            self._take(handles())
            while (tick := self._next(now)) is not None:
                send(tick)
        return self._planner.next_in_s(now) or math.inf  # there was nothing

    def _take(self, handles: Iterable[JobHandle]) -> None:
        """All jobs that are not over."""
        present = {handle.job.id: handle for handle in handles}
        for id, handle in present.items():
            if not self._planner.knows(id):
                self._handles[id] = handle
                self._planner.add(handle.job, self._state(handle))
        unwanted = [id for id, handle in present.items() if handle.reason is not None]
        over = [id for id in self._handles if id not in present]
        self._planner.update(unwanted, over)
        self._handles = {id: handle for id, handle in self._handles.items() if self._planner.knows(id)}

    def _next(self, now: float) -> Tick | None:
        """What the ranks are to do next, beyond what was sent; None if nothing."""
        tick = self._planner.next(now)
        if tick is not None:
            for job in tick.start:
                self._handles[job.id].start()  # one that is over by now is dropped in the next tick
        return tick

    def came(self, report: TickReport, timeouts: StepTimeouts) -> Iterator[tuple[JobHandle, JobOutput]]:
        """The oldest tick is done: tell everybody. Yields the jobs that are complete, to be ended."""
        over = self._planner.came(report, time.monotonic())
        for id, events in report.progress.items():
            self._handles[id].tell(events)
        for call in report.calls:
            self._called(call, timeouts)
        for failure in report.failures:
            self._failed(failure)
        if report.calls or report.started_s:  # images came with a tick that did others' work, too
            self._others |= dict.fromkeys(report.outputs, True)
        for id, output in report.outputs.items():
            handle = self._handles[id]
            self._learn(handle, output, timeouts)
            yield handle, output
        if report.outputs:
            self._learn_joined()
        for id in over:
            self._handles.pop(id).end_if_unwanted()
            self._shared.pop(id, None)
            self._others.pop(id, None)
        if report.outputs:  # something was learned
            self._planner.expect({id: self._state(handle) for id, handle in self._handles.items()})

    def lost(self) -> list[JobHandle]:
        """The ranks are gone; the jobs that they had. Whoever is not ended is run again, with no other."""
        names = self.active
        kind: Literal["alone", "shared"] = "alone" if len(names) == 1 else "shared"
        handles = [self._handles[id] for id in names]
        for handle in handles:
            handle.faults[kind] += 1
        self._planner.lost()
        self._shared, self._others = {}, {}
        return handles

    def _state(self, handle: JobHandle) -> JobState:
        return self._costs.job_state(
            handle.job.id,
            work_of(handle.job),
            arrived=handle.arrived,
            deadline=math.inf if handle.deadline is None else handle.deadline,
            caller=handle.caller,
            weight=handle.weight,
        )

    def _called(self, call: Called, timeouts: StepTimeouts) -> None:
        jobs = [self._handles[id].job for id in call.jobs]
        timeouts.called(jobs, call.seconds)
        several = len(self.active) > 1
        for id in call.jobs:
            self._shared[id] = self._shared.get(id, 0) + (len(jobs) > 1)
            self._others[id] = self._others.get(id, False) or several
        if len(jobs) > 1:
            self._joined.setdefault((call.jobs, round(max(call.shares), 1)), []).append(call)

    def _failed(self, failure: Failure) -> None:
        """A job's own failure ends it; those of a call that was shared are tried apart."""
        handles = [self._handles[id] for id in failure.jobs]
        if failure.kind != "together":
            job = handles[0].job
            _logger.error("Job %s failed:\n%s", job.id, failure.trace, extra=about(job))
            kind = LoraNotLoaded if failure.type == LoraNotLoaded.__name__ else JobFailed
            handles[0].end(kind(str(failure)))
        elif failure.type == "OutOfMemoryError":
            self._costs.out_of_memory([self._state(handle) for handle in handles])
        else:
            for handle in handles:
                self._planner.draw_alone(handle.job.id)

    def _learn_joined(self) -> None:
        """What the usual joined calls cost. Not each of them: learning takes milliseconds."""
        for (names, _), calls in sorted(self._joined.items(), key=lambda one: -len(one[1]))[:_LEARNED]:
            if all(id in self._handles for id in names):
                shares = [fmean(call.shares[row] for call in calls) for row in range(len(names))]
                states = [self._state(self._handles[id]) for id in names]
                self._costs.called(states, median(call.seconds for call in calls), shares)
        self._joined = {}

    def _learn(self, handle: JobHandle, output: JobOutput, timeouts: StepTimeouts) -> None:
        job = handle.job
        output.shared = self._shared.get(job.id, 0)
        timeouts.finished(job, output.denoise_s)
        undisturbed = handle.begun is not None and not self._others.get(job.id, False)
        wall_s = time.monotonic() - handle.begun if undisturbed and handle.begun is not None else 0.0
        self._costs.learn(work_of(job), output, wall_s=wall_s)
        if not output.shared:  # rows of a shared call may hold their neighbours' memory
            self._costs.held(self._state(handle), output.held_bytes)


def rules_of(settings: AppSettings) -> Rules:
    """How the gang of an application schedules its jobs."""
    parallel, ranks = settings.parallel, settings.parallel.ranks_per_replica
    if parallel.scheduling == "fifo":
        return Rules(scheduling="fifo", max_rows=parallel.max_rows, max_active=1, decoders=ranks)
    memory = math.inf if parallel.max_active_bytes is None else parallel.max_active_bytes
    return Rules(max_rows=parallel.max_rows, max_active=parallel.max_active_jobs, decoders=ranks, memory_bytes=memory)
