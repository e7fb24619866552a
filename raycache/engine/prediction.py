"""Predicted ends of the admitted jobs: the gang's own schedule, simulated from its current state.

A forecast takes some milliseconds (:mod:`raycache.gang.forecast`), so it is kept until something changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from raycache.gang.costs import Costs
from raycache.gang.forecast import forecast
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import JobState
from raycache.gang.scheduler import left_s
from raycache.gang.simulator import Forecast

__all__ = ["Prediction", "Predictions", "moved"]

#: Seconds by which the time when ranks are ready may move before everything is predicted again.
_MOVED_S = 0.1
_SOON = 1e-6


@dataclass(frozen=True)
class Prediction:
    """The prediction for one set of jobs. Times are in seconds, on the same clock as the jobs' deadlines.

    Attributes:
        jobs: by id, with their progress; without those that have ended but are not released yet.
        outlook: the gang's outlook that it was made from.
        begin: when the gang was, or will be, in the state of the outlook.
        forecasts: by id.
    """

    jobs: Mapping[str, JobState]
    outlook: Outlook
    begin: float
    forecasts: Mapping[str, Forecast]

    def late_s(self, now: float) -> float:
        """Seconds that the gang is behind: an overdue job ends now at the earliest, and all others later by as much."""
        return max(0.0, now - min((told.end for told in self.forecasts.values()), default=math.inf))

    def ends(self, now: float) -> dict[str, float]:
        """When each job will end."""
        late = self.late_s(now)
        return {id: told.end + late for id, told in self.forecasts.items()}

    def backlog_s(self, now: float) -> float:
        """Seconds until all jobs have ended."""
        return max((end - now for end in self.ends(now).values()), default=0.0)

    def in_time(self, id: str, now: float) -> bool:
        """Whether a job will be done before its deadline."""
        told = self.forecasts[id]
        return told.drawn and told.end + self.late_s(now) <= self.jobs[id].deadline + _SOON

    def spoilt(self, other: Prediction, now: float) -> list[str]:
        """Jobs that are in time here, but not in ``other``."""
        return [id for id in self.jobs if self.in_time(id, now) and not other.in_time(id, now)]


class Predictions:
    """Makes predictions from the gang's outlook, and keeps them while nothing changes. Not thread-safe.

    Args:
        costs: the learned costs of jobs.
        outlook: returns the gang's progress.
    """

    def __init__(self, costs: Costs, outlook: Callable[[], Outlook]) -> None:
        self._costs, self._outlook = costs, outlook
        self._begun: set[str] = set()  # jobs that have been in the gang's outlook
        self._last: Prediction | None = None
        self._asked: dict[str, JobState] = {}  # the jobs that the last prediction was made for
        self._made_at = -math.inf

    def of(self, jobs: Mapping[str, JobState], now: float, *, older_s: float = 0.0) -> Prediction:
        """The prediction for the admitted jobs.

        Args:
            jobs: in their state at admission.
            older_s: a prediction for the same jobs may be up to this many seconds old.
        """
        last, outlook = self._last, self._outlook()
        same = last is not None and self._asked.keys() == jobs.keys()
        if last is not None and same and now - self._made_at < older_s:
            return last
        begin = self._begin(outlook, now)
        if last is None or not same or outlook.jobs is not last.outlook.jobs or abs(begin - last.begin) > _MOVED_S:
            last = self._made(self._known(jobs, outlook), outlook, begin)
            self.keep(last, jobs, now)
        return last

    def with_jobs(self, base: Prediction, jobs: Iterable[JobState]) -> Prediction:
        """The prediction with additional jobs."""
        return self._made({**base.jobs, **{job.id: job for job in jobs}}, base.outlook, base.begin)

    def keep(self, prediction: Prediction, jobs: Mapping[str, JobState], now: float) -> None:
        """Keep a prediction for these jobs; ``jobs`` has their state at admission."""
        self._last, self._asked, self._made_at = prediction, dict(jobs), now
        self._begun &= jobs.keys()

    def in_time_after(self, job: JobState, base: Prediction, now: float, patience_s: float) -> float:
        """Seconds after which a job that arrives then is done within ``patience_s``, and makes no other late.

        Tries a few times; once all other jobs are done it is alone.
        """
        backlog_s = base.backlog_s(now)
        latest_s = max(0.0, backlog_s + left_s(job, self._costs) - patience_s)  # in time even after all other work
        for wait in sorted({max(1, math.ceil(each)) for each in (latest_s / 2, latest_s, (latest_s + backlog_s) / 2)}):
            at = now + wait
            told = self.with_jobs(base, [replace(job, arrived=at, deadline=at + patience_s)])
            if told.in_time(job.id, now) and not base.spoilt(told, now):
                return float(wait)
        return max(1.0, backlog_s)

    def _made(self, jobs: Mapping[str, JobState], outlook: Outlook, begin: float) -> Prediction:
        told = forecast(jobs.values(), self._costs, outlook.rules, begin, outlook.accounts)
        return Prediction(jobs, outlook, begin, told)

    def _begin(self, outlook: Outlook, now: float) -> float:
        """When the gang is in the outlook's state: when that was first seen, or when ranks will be ready."""
        if outlook.ready_in_s:
            return now + outlook.ready_in_s
        return min(now, self._last.begin) if self._last is not None and self._last.outlook.jobs is outlook.jobs else now

    def _known(self, jobs: Mapping[str, JobState], outlook: Outlook) -> dict[str, JobState]:
        """The jobs with their progress. One that has been in the outlook, but no longer is, has ended."""
        told = {job.id: job for job in outlook.jobs}
        present = {}
        for id, job in jobs.items():
            if id in told:
                self._begun.add(id)
                # Without ranks the completed steps are lost.
                present[id] = replace(told[id], calls_done=None) if outlook.ready_in_s else told[id]
            elif id not in self._begun:
                present[id] = job
        return present


def moved(job: JobState, at: float) -> JobState:
    """The same job arriving at another time."""
    return replace(job, arrived=at, deadline=job.deadline - job.arrived + at)
