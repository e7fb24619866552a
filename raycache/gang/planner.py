"""The schedule of a running gang: jobs as reported by the ranks, ticks that were sent, and the next one.

A tick is planned while the one before it runs, on what that will have done if all goes well. Where it did not, what
was sent ahead is skipped by the ranks, and planned anew. Used by the gang's thread; knows neither Ray nor handles.
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

#: Ticks that are sent before the first of them is done.
_DEPTH = 2
#: Behind a tick that takes longer, none is sent until so long before its end: an abort would wait for both.
_LONG_S, _AHEAD_S = 0.25, 0.03


@dataclass(frozen=True)
class _Sent:
    tick: Tick
    plan: Plan
    at: float


class TickPlanner:
    """Makes ticks and takes in what came of them.

    Args:
        costs: what is known of costs by now.
        rules: see :class:`~raycache.gang.schedule.Rules`.

    Attributes:
        outlook: all jobs, as the ranks have told.
        active: jobs that ranks have, or are sent.
    """

    def __init__(self, costs: CallCosts, rules: Rules) -> None:
        self._costs, self._rules = costs, rules
        self._jobs: dict[str, JobState] = {}
        self._bodies: dict[str, Job] = {}
        self._sent: deque[_Sent] = deque()
        self._accounts = Accounts()
        self._number, self._known = 0, -1
        self._stale = False  # what is under way will be skipped
        self._alone: list[str] = []
        self._decoding = set[str]()  # jobs that are over for the schedule, and whose images are to come
        self.outlook, self.active = Outlook((), self._accounts, rules), list[str]()

    @property
    def in_flight(self) -> bool:
        """Whether a tick is under way."""
        return bool(self._sent)

    def knows(self, id: str) -> bool:
        """Whether this job is in the schedule."""
        return id in self._jobs

    def add(self, job: Job, state: JobState) -> None:
        """A job arrived."""
        self._jobs[state.id], self._bodies[state.id] = state, job

    def update(self, unwanted: Iterable[str], over: Iterable[str]) -> None:
        """What changed since the last tick.

        Args:
            unwanted: jobs that are to be dropped.
            over: jobs that nobody waits for; one that ranks have, or get, is dropped by them first.
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
        """What is known of jobs by now, but for how far they are."""
        for id, state in states.items():
            if id in self._jobs:
                self._jobs[id] = replace(self._jobs[id], share=state.share)

    def begin(self, number: int, rules: Rules) -> None:
        """New ranks are there, which expect a tick of this ``number`` next."""
        self._number, self._known, self._rules = number, number - 1, rules
        self._note()

    def draw_alone(self, id: str) -> None:
        """This job shares no call any more."""
        if id in self._jobs:
            self._jobs[id] = replace(self._jobs[id], joins=None)

    def next_in_s(self, now: float) -> float:
        """Seconds until another tick may be sent, if none comes back before: 0 now, infinity not before one does."""
        if not self._sent:
            return 0.0
        if len(self._sent) >= _DEPTH or self._stale:
            return math.inf
        last = self._sent[-1]
        return 0.0 if last.plan.seconds <= _LONG_S else max(0.0, last.at + last.plan.seconds - _AHEAD_S - now)

    def _due_before(self, at: float) -> bool:
        """Whether images that the next tick brings are due earlier."""
        ends = (id for sent in self._sent for id in sent.plan.end)
        return any(self._jobs[id].deadline < at for id in (*self._decoding, *ends) if id in self._jobs)

    def next(self, now: float) -> Tick | None:
        """The next tick to send; None if there is nothing to do, or enough under way."""
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
            planned = Plan(abort=planned.abort)  # images that are there must not wait for another's call
        if not planned.works and not planned.abort and (self._sent or not self._decoding):
            return None  # else an empty tick brings the images
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
        """The oldest tick under way is done at ``now``, as all ranks say alike; ``report`` is rank 0's.

        Returns:
            The jobs that are over by it.
        """
        sent = self._sent.popleft()
        if self._sent:
            self._sent[0] = replace(self._sent[0], at=now)  # it begins only now
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
        """The ranks are gone. What they had is begun anew, one by one: one may be what broke them."""
        again = list(self.active)
        self._sent.clear()
        self._stale, self._decoding = False, set()
        self._jobs = {id: replace(job, calls_done=None) for id, job in self._jobs.items()}
        self._alone = list(dict.fromkeys([*self._alone, *again]))
        self._note()

    def _called(self, id: str, *, done: bool) -> None:
        job = self._jobs[id]
        calls_done = (job.calls_done or 0) + 1
        # A pipeline may make more calls than were expected of it, or fewer.
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
