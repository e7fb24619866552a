"""The scheduler, a pure function: active and waiting jobs, learned costs, accounts, now -> plan of the next tick.

The order: deadlines first, but only if they would be missed otherwise (:mod:`raycache.gang.deadlines`); then the
caller that has used the least of its fair share (virtual time); of its jobs the one with the least remaining work,
with ageing. Other jobs join the call if that saves time (:mod:`raycache.gang.joining`). Jobs start only when it
is their turn or when they join, so that later jobs find a free place.

No job starves. A caller's account does not change while it waits, so its turn comes; it waits for at most one call, or
one encoding or decoding, of each other caller between two turns, for a decoding with each such call, and for the
lead that deadlines may take (:class:`~raycache.gang.schedule.Rules`). Among jobs of the same caller, a job with ``w``
seconds of work waits only for those that arrived before it or within ``w / ageing`` seconds after it, and for
deadlines until it is ``patience_s`` old. A job that can no longer meet its deadline runs when there is nothing else
to do, and ends at its deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raycache.gang.deadlines import Deadlines
from raycache.gang.ending import ended_together
from raycache.gang.joining import Room, joined, unit_s
from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules

__all__ = ["left_s", "plan"]


def left_s(job: JobState, costs: CallCosts) -> float:
    """Seconds of work that ``job`` has left, if it runs alone."""
    left, seconds = job.calls_left, costs.end_s(job)
    if job.calls_done is None:
        seconds += costs.start_s(job)
    return seconds + left * costs.call_s((job,)) if left else seconds


def plan(jobs: Sequence[JobState], costs: CallCosts, rules: Rules, accounts: Accounts, now: float) -> Plan:
    """The next tick.

    Args:
        jobs: all unfinished jobs, active and waiting, in any order.
        accounts: the result of ``Accounts.present`` for these jobs' callers.
        now: seconds, on the clock of the jobs' arrivals and deadlines.

    Raises:
        ValueError: two jobs have the same id.
    """
    if len({job.id for job in jobs}) < len(jobs):
        raise ValueError(f"job ids must be unique: {sorted(job.id for job in jobs)}")
    over = {job.id for job in jobs if job.unwanted or job.deadline < now}
    tick = _Tick([job for job in jobs if job.id not in over], costs, rules, accounts, now)
    while tick.add() and tick.seconds < rules.tick_s:
        pass
    return Plan(
        abort=tuple(sorted(over)),
        start=tuple(tick.start),
        calls=tuple(tick.calls),
        end=tuple(tick.end),
        seconds=tick.seconds,
        charges=tick.charges,
    )


class _Tick:
    """A plan under construction. It has each job once: a job's next call depends on the result of this one."""

    def __init__(
        self, jobs: Sequence[JobState], costs: CallCosts, rules: Rules, accounts: Accounts, now: float
    ) -> None:
        self._jobs, self._costs, self._rules = jobs, costs, rules
        self._accounts, self._now = accounts, now
        self._fifo = rules.scheduling == "fifo"
        self._left_s = {} if self._fifo else {job.id: left_s(job, costs) for job in jobs}
        self._used: set[str] = set()
        self._room = Room(jobs, costs, rules)
        self.start: list[str] = []
        self.calls: list[tuple[str, ...]] = []
        self.end: list[str] = []
        self.seconds = 0.0
        self.charges: dict[str, float] = {}

    def add(self) -> bool:
        """Add one call or one end to the plan; False if there is none."""
        order = self._order()
        startable = self._startable(order)
        ready = [job for job in order if job.id not in self._used and (not job.waiting or job.id in startable)]
        if not ready:
            return False
        if self._fifo:
            self._carry_out([ready[0]], unit_s(ready[0], self._costs))
            return True
        deadlines = Deadlines(self._jobs, self._left_s, self._now, self._rules.patience_s)
        pick = self._pick(ready, deadlines)
        if pick.waiting:
            self._room.take(pick)
        others = [job for job in order if job.id not in self._used and job is not pick]
        if pick.calls_left:
            members, seconds = joined(pick, others, self._costs, self._rules, self._room, deadlines)
        else:
            members, seconds = ended_together(pick, others, self._costs, self._rules, deadlines)
        self._carry_out(members, seconds)
        if members[0].calls_left:
            self._let_go(order, seconds)
        return True

    def _let_go(self, order: Sequence[JobState], seconds: float) -> None:
        """Decode a job that has finished in others' calls: it need not wait for its caller's turn.

        One per call, if it takes no longer than the call may be stretched; and others that cost no extra time.
        """
        deadlines = Deadlines(self._jobs, self._left_s, self._now, self._rules.patience_s)
        done = [job for job in order if not (job.calls_left or job.waiting or job.id in self._used)]
        for index, job in enumerate(done):
            end_s = self._costs.end_s(job)
            if end_s <= (self._rules.max_stretch - 1) * seconds and deadlines.allow(end_s, {job.id: end_s}):
                self._carry_out(*ended_together(job, done[index + 1 :], self._costs, self._rules, deadlines))
                return

    def _order(self) -> list[JobState]:
        """All jobs, in order of their turn; deadlines are ignored."""
        if self._fifo:
            # A started job runs to its end.
            return sorted(self._jobs, key=lambda job: (job.waiting, job.arrived, job.id))
        got = {caller: self._accounts.of(caller) for caller in {job.caller for job in self._jobs}}
        lefts, now, sure, ageing = self._left_s, self._now, 1 - self._rules.tolerance, self._rules.ageing

        def key(job: JobState) -> tuple[bool, float, float, str]:
            left = lefts[job.id]
            hopeless = now + sure * left > job.deadline
            # Each second of waiting counts as `ageing` seconds less work; `now` is equal for all, and left out.
            return hopeless, got[job.caller], left + ageing * job.arrived, job.id

        return sorted(self._jobs, key=key)

    def _startable(self, order: Sequence[JobState]) -> set[str]:
        """The waiting jobs that have a free place; none after one that has none, or that one might never start."""
        if self._fifo and (self._used or any(not job.waiting for job in order)):
            return set()
        startable = set()
        for job in order:
            if job.waiting and job.id not in self._used:
                if not self._room.has(job, all_of_it=True):
                    break
                startable.add(job.id)
        return startable

    def _pick(self, ready: Sequence[JobState], deadlines: Deadlines) -> JobState:
        """The job whose turn it is: the first in order that makes no job late, else the earliest deadline."""
        first = ready[0]

        def harmless(job: JobState) -> bool:
            seconds = unit_s(job, self._costs)
            return deadlines.allow(seconds, {job.id: seconds})

        pick = next(filter(harmless, ready), None)
        if pick is None:
            ids = {job.id for job in ready}
            pick = next((job for job in deadlines.kept if job.id in ids), first)
        if pick.caller != first.caller and self._lead(pick, first) > self._most_lead(first):
            own = [job for job in ready if job.caller == first.caller]
            pick = next(filter(harmless, own), first)
        return pick

    def _lead(self, pick: JobState, first: JobState) -> float:
        return self._accounts.of(pick.caller) - self._accounts.of(first.caller)

    def _most_lead(self, first: JobState) -> float:
        """The maximum lead of another caller over that of ``first``, in virtual time."""
        own = (_whole_s(job, self._costs) for job in self._jobs if job.caller == first.caller)
        return self._rules.lead * min(own) / first.weight

    def _carry_out(self, members: Sequence[JobState], seconds: float) -> None:
        alone = {job.id: unit_s(job, self._costs) for job in members}
        charges = _shared(members, alone, seconds)
        if members[0].calls_left:
            self.calls.append(tuple(job.id for job in members))
            self.start += [job.id for job in members if job.waiting]
        else:
            self.end += [job.id for job in members]
        self._used.update(alone)
        self._now += seconds
        self.seconds += seconds
        if not self._fifo:
            for job in members:
                self._left_s[job.id] -= alone[job.id]
        for caller, part in charges.items():
            self.charges[caller] = self.charges.get(caller, 0.0) + part
        self._accounts = self._accounts.charged(charges)


def _whole_s(job: JobState, costs: CallCosts) -> float:
    """Seconds of the whole job: near its end, the lead measured by it must not shrink."""
    calls = job.calls * costs.call_s((job,)) if job.calls else 0.0
    return costs.start_s(job) + calls + costs.end_s(job)


def _shared(members: Sequence[JobState], alone: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Virtual time per caller of a call, in proportion to its jobs' own costs, so that joining is cheaper for all."""
    whole = sum(alone.values())
    charges: dict[str, float] = {}
    for job in members:
        part = alone[job.id] / whole if whole else 1 / len(members)
        charges[job.caller] = charges.get(job.caller, 0.0) + seconds * part / job.weight
    return charges
