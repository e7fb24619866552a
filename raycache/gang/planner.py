"""The schedule of a running gang: jobs as reported by the ranks, ticks sent, and the next one.

A tick is planned while the previous one runs, assuming that this one succeeds. If it does not, the ranks skip what was
sent ahead, and it is planned again. Used by the gang's thread; independent of Ray and handles.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from raycache.gang.outlook import Outlook
from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules, settled
from raycache.gang.scheduler import plan
from raycache.protocol.job import Job
from raycache.protocol.tick import Tick, TickReport

__all__ = ["TickPlanner"]

#: Number of ticks sent before the first of them is done.
_DEPTH = 2
#: After a tick longer than this, none is sent until this long before its end: an abort would wait for both.
_LONG_S, _AHEAD_S = 0.25, 0.03


@dataclass(frozen=True)
class _Sent:
    tick: Tick
    plan: Plan
    at: float


class TickPlanner:
    """Plans ticks and processes their results.

    Args:
        costs: the costs learned so far.
        rules: see :class:`~raycache.gang.schedule.Rules`.

    Attributes:
        outlook: all jobs, as the ranks have reported them.
        active: jobs that ranks have or will get with ticks already sent.
    """

    def __init__(self, costs: CallCosts, rules: Rules) -> None:
        self._costs, self._rules = costs, rules
        self._jobs: dict[str, JobState] = {}
        self._bodies: dict[str, Job] = {}
        self._sent: deque[_Sent] = deque()
        self._accounts = Accounts()
        self._number, self._known = 0, -1
        self._stale = False  # the ticks in flight will be skipped
        self._alone: list[str] = []
        self._decoding = set[str]()  # jobs that the schedule is done with, but whose images are still missing
        self.outlook, self.active = Outlook((), self._accounts, rules), list[str]()

    @property
    def in_flight(self) -> bool:
        """Whether a tick is in flight."""
        return bool(self._sent)

    def knows(self, id: str) -> bool:
        """Whether this job is in the schedule."""
        return id in self._jobs

    def add(self, job: Job, state: JobState) -> None:
        """Add a job."""
        self._jobs[state.id], self._bodies[state.id] = state, job

    def update(self, unwanted: Iterable[str], over: Iterable[str]) -> None:
        """Apply changes since the last tick.

        Args:
            unwanted: jobs to drop.
            over: ended jobs that no caller waits for; those that ranks have, or get, are dropped there first.
        """
        for id in over:
            if id in self.active:
                unwanted = [*unwanted, id]
            else:
                self._remove(id)
        for id in unwanted:
            self._jobs[id] = replace(self._jobs[id], unwanted=True)
        self._note()

    def expect(self, states: Mapping[str, JobState]) -> None:
        """Update the jobs with new knowledge, except their progress."""
        for id, state in states.items():
            if id in self._jobs:
                self._jobs[id] = replace(self._jobs[id], share=state.share)

    def begin(self, number: int, rules: Rules) -> None:
        """New ranks are ready; they expect a tick with this ``number`` next."""
        self._number, self._known, self._rules = number, number - 1, rules
        self._note()

    def draw_alone(self, id: str) -> None:
        """Never join this job's calls with others again."""
        if id in self._jobs:
            self._jobs[id] = replace(self._jobs[id], joins=None)

    def next_in_s(self, now: float) -> float:
        """Seconds until the next tick may be sent: 0 = now, infinity = not before one comes back."""
        if not self._sent:
            return 0.0
        if len(self._sent) >= _DEPTH or self._stale:
            return math.inf
        last = self._sent[-1]
        return 0.0 if last.plan.seconds <= _LONG_S else max(0.0, last.at + last.plan.seconds - _AHEAD_S - now)

    def _due_before(self, at: float) -> bool:
        """Whether images that the next tick returns are due earlier."""
        ends = (id for sent in self._sent for id in sent.plan.end)
        return any(self._jobs[id].deadline < at for id in (*self._decoding, *ends) if id in self._jobs)

    def next(self, now: float) -> Tick | None:
        """The next tick to send; None if there is nothing to do, or enough in flight."""
        if self.next_in_s(now) > 0:
            return None
        ahead = tuple(job for id, job in self._jobs.items() if id not in self._decoding)
        for sent in self._sent:
            ahead = settled(ahead, sent.plan)
        if self._alone:
            ahead = tuple(job for job in ahead if job.id == self._alone[0] or (job.unwanted and not job.waiting))
        self._accounts = self._accounts.present({job.caller for job in ahead})
        planned = plan(ahead, self._costs, self._rules, self._accounts, now)
        if self._due_before(now + planned.seconds):
            planned = Plan(abort=planned.abort)  # finished images must not wait for another job's call
        if not planned.works and not planned.abort and (self._sent or not self._decoding):
            return None  # otherwise an empty tick collects the images
        self._accounts = self._accounts.charged(planned.charges)
        tick = Tick(
            self._number,
            self._known,
            planned.abort,
            tuple(self._bodies[id] for id in planned.start),
            planned.calls,
            planned.end,
        )
        self._number += 1
        self._sent.append(_Sent(tick, planned, now))
        self._note()
        return tick

    def came(self, report: TickReport, now: float) -> list[str]:
        """The oldest tick in flight is done at ``now`` on all ranks; ``report`` is their merged report.

        Returns:
            The jobs that it completed.
        """
        sent = self._sent.popleft()
        if self._sent:
            self._sent[0] = replace(self._sent[0], at=now)  # it starts only now
        broken = any(failure.phase != "decode" for failure in report.failures)
        self._known, self._stale = sent.tick.number, broken or (self._stale and bool(self._sent))
        if report.skipped:
            return []
        over = {*sent.tick.abort, *report.outputs}
        over |= {id for failure in report.failures if failure.kind == "error" for id in failure.jobs}
        self._decoding = (self._decoding | set(report.decoding)) - over
        for id in report.started_s:
            job = self._jobs[id]
            self._jobs[id] = replace(job, calls_done=0, calls=0 if id in report.done else job.calls)
        for call in report.calls:
            for id in call.jobs:
                self._called(id, done=id in report.done)
        for id in over:
            self._remove(id)
        self._note()
        return sorted(over)

    def lost(self) -> None:
        """The ranks are gone. Restart their jobs one at a time: one may be the cause."""
        again = list(self.active)
        self._sent.clear()
        self._stale, self._decoding = False, set()
        self._jobs = {id: replace(job, calls_done=None) for id, job in self._jobs.items()}
        self._alone = list(dict.fromkeys([*self._alone, *again]))
        self._note()

    def _called(self, id: str, *, done: bool) -> None:
        job = self._jobs[id]
        calls_done = (job.calls_done or 0) + 1
        # A pipeline may make more or fewer calls than expected.
        calls = calls_done if done else max(job.calls, calls_done + 1)
        self._jobs[id] = replace(job, calls_done=calls_done, calls=calls)

    def _remove(self, id: str) -> None:
        self._jobs.pop(id, None)
        self._bodies.pop(id, None)
        if id in self._alone:
            self._alone.remove(id)

    def _note(self) -> None:
        sent = {id for sent in self._sent for id in sent.plan.start}
        self.outlook = Outlook(tuple(self._jobs.values()), self._accounts, self._rules)
        self.active = [job.id for job in self._jobs.values() if not job.waiting or job.id in sent]
