"""Which jobs' transformer calls are joined: compatible ones, if one more row costs less than a separate call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raycache.gang.deadlines import Deadlines
from raycache.gang.schedule import CallCosts, JobState, Rules

__all__ = ["Room", "joined", "may_join", "unit_s"]

#: Encoding that costs no more than this part of the later saving does not count as stretching a call.
_REPAID = 0.25


class Room:
    """Free places and memory for jobs to start."""

    def __init__(self, jobs: Iterable[JobState], costs: CallCosts, rules: Rules) -> None:
        self._costs, self._rules = costs, rules
        active = [job for job in jobs if not job.waiting]
        self._count = len(active)
        self._bytes = sum(costs.bytes_of(job) for job in active)

    def has(self, job: JobState, *, all_of_it: bool) -> bool:
        """Whether ``job`` may start; unless ``all_of_it``, one place and its part of the memory must stay free."""
        if self._count == 0:
            return True  # a job that needs more memory than exists is tried alone
        spared = 0 if all_of_it else 1
        count = self._rules.max_active - spared
        memory = self._rules.memory_bytes * (1 - spared / self._rules.max_active)
        return self._count < count and self._bytes + self._costs.bytes_of(job) <= memory

    def take(self, job: JobState) -> None:
        """``job`` starts: take its place and memory."""
        self._count += 1
        self._bytes += self._costs.bytes_of(job)


def unit_s(job: JobState, costs: CallCosts) -> float:
    """Seconds of the next unit of ``job`` alone: a call (the first with encoding), or decoding."""
    if job.calls_left == 0:
        return costs.end_s(job)
    return costs.call_s((job,)) + (costs.start_s(job) if job.waiting else 0.0)


def may_join(one: JobState, other: JobState) -> bool:
    """Whether the next calls of both may be joined."""
    return (
        one.joins is not None
        and one.joins == other.joins
        and one.lora == other.lora
        and one.shape == other.shape
        and one.calls_left > 0
        and other.calls_left > 0
    )


def joined(
    pick: JobState,
    others: Sequence[JobState],
    costs: CallCosts,
    rules: Rules,
    room: Room,
    deadlines: Deadlines,
) -> tuple[list[JobState], float]:
    """The jobs in ``pick``'s call, ``pick`` first, and the seconds of that call and of encoding for it.

    Args:
        others: candidates, in order of preference. Waiting ones that join take their place in ``room``.
    """
    members, alone_s = [pick], unit_s(pick, costs)
    seconds, rows = alone_s, pick.rows
    most_rows = min(rules.max_rows, costs.max_rows(pick))
    works = {pick.id: alone_s}
    keeps = deadlines.allow(alone_s, works)
    blocked, once_s, longest_s = False, 0.0, alone_s
    for job in others:
        if not may_join(pick, job) or rows + job.rows > most_rows:
            continue
        if job.waiting and (blocked or not room.has(job, all_of_it=False)):
            blocked = True  # no later job takes the place that it waits for
            continue
        more = costs.call_s([*members, job]) - costs.call_s(members)
        if more > (1 - rules.min_gain) * costs.call_s([job]):
            continue
        start_s = costs.start_s(job) if job.waiting else 0.0
        total = seconds + more + start_s
        # Encoding delays one call, but all later calls are shared: if that saves much more, it does not count.
        saved_s = (costs.call_s([job]) - more) * min(job.calls_left, pick.calls_left)
        free_s = max(once_s, start_s if start_s <= _REPAID * saved_s else 0.0)
        # A call that reuses much is short: joined to one that does not, it would take as long as that one.
        own_s = costs.call_s([job])
        if total - free_s > rules.max_stretch * max(longest_s, own_s):
            continue
        with_it = {**works, job.id: unit_s(job, costs)}
        if keeps and not deadlines.allow(total, with_it):
            continue
        members.append(job)
        once_s, longest_s = free_s, max(longest_s, own_s)
        seconds, rows, works = total, rows + job.rows, with_it
        if job.waiting:
            room.take(job)
    return members, seconds
