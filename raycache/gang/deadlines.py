"""The deadlines that can be met, and the work that may run first without missing one.

Earliest deadline first meets all deadlines that can be met on one machine. As long as it would still meet them
afterwards, any other work may run first; so deadlines only take priority when they have to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from raycache.gang.schedule import JobState

__all__ = ["Deadlines"]

_SOON = 1e-6


class Deadlines:
    """The jobs that meet their deadlines if the earliest deadline runs first, and that must stay in time.

    A job that does not fit after those with earlier deadlines is not among them: it would only make others late.

    Args:
        left_s: remaining seconds of work of each job, by id.
        patience_s: a job without a deadline that is older than this runs before all deadlines.
    """

    def __init__(self, jobs: Iterable[JobState], left_s: Mapping[str, float], now: float, patience_s: float) -> None:
        bound: list[JobState] = []
        old: list[JobState] = []
        for job in jobs:
            if job.deadline < math.inf:
                bound.append(job)
            elif now - job.arrived > patience_s:
                old.append(job)
        old.sort(key=lambda job: (job.arrived, job.id))
        self._first = old[0].id if old else None
        self._begin = now
        self._rest: list[tuple[float, str, float]] = []  # deadline, job, seconds of work
        self.kept = list(old)
        at = now
        for job in old:
            at += left_s[job.id]
        self._old_s = at - now
        self._old = {job.id for job in old}
        for job in sorted(bound, key=lambda job: (job.deadline, job.arrived, job.id)):
            left = left_s[job.id]
            if at + left <= job.deadline + _SOON:
                at += left
                self._rest.append((job.deadline, job.id, left))
                self.kept.append(job)

    def allow(self, seconds: float, works: Mapping[str, float]) -> bool:
        """Whether all deadlines can still be met if the next ``seconds`` are spent on some jobs.

        Args:
            works: seconds of its own work that each of those jobs completes, by id.
        """
        if self._first is not None and self._first not in works:
            return False
        at = self._begin + seconds + self._old_s - sum(work for job, work in works.items() if job in self._old)
        for deadline, job, left in self._rest:
            at += left - works.get(job, 0.0)
            if at > deadline + 2 * _SOON:
                return False
        return True
