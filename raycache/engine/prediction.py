"""Predicted end of the admitted jobs: the gang's own schedule, simulated from its current state.

Forecasts cost some milliseconds (:mod:`raycache.gang.forecast`), so each is kept until something changes.
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

#: How far the time when ranks will be ready may move before all is predicted anew, in seconds.
_MOVED_S = 0.1
_SOON = 1e-6


@dataclass(frozen=True)
class Prediction:
    """Of one set of jobs. Times are seconds of the clock that the jobs' deadlines are on.

    Attributes:
        jobs: by id, each as far as it is; those that are over and not yet given back are not among them.
        outlook: of the gang that it was made from.
        begin: when the gang was, or will be, where the outlook says.
        forecasts: by id.
    """

    jobs: Mapping[str, JobState]
    outlook: Outlook
    begin: float
    forecasts: Mapping[str, Forecast]

    def late_s(self, now: float) -> float:
        """By how much the gang is behind: who should be done and is not will be now at the earliest, others later."""
        return max(0.0, now - min((told.end for told in self.forecasts.values()), default=math.inf))

    def ends(self, now: float) -> dict[str, float]:
        """When each job is over."""
        late = self.late_s(now)
        return {id: told.end + late for id, told in self.forecasts.items()}

    def backlog_s(self, now: float) -> float:
        """Seconds until all are over."""
        return max((end - now for end in self.ends(now).values()), default=0.0)

    def in_time(self, id: str, now: float) -> bool:
        """Whether a job is done before its deadline."""
        told = self.forecasts[id]
        return told.drawn and told.end + self.late_s(now) <= self.jobs[id].deadline + _SOON

    def spoilt(self, other: Prediction, now: float) -> list[str]:
        """Jobs that are in time here, and are not as in ``other``."""
        return [id for id in self.jobs if self.in_time(id, now) and not other.in_time(id, now)]


class Predictions:
    """Made from what the gang tells, and kept while nothing has changed. Not thread-safe.

    Args:
        costs: what jobs cost.
        outlook: how far the gang is.
    """

    def __init__(self, costs: Costs, outlook: Callable[[], Outlook]) -> None:
        self._costs, self._outlook = costs, outlook
        self._begun: set[str] = set()  # jobs that the gang has told of
        self._last: Prediction | None = None
        self._asked: dict[str, JobState] = {}  # the jobs that the last one was made for
        self._made_at = -math.inf

    def of(self, jobs: Mapping[str, JobState], now: float, *, older_s: float = 0.0) -> Prediction:
        """What becomes of admitted jobs.

        Args:
            jobs: as they were when they were admitted.
            older_s: what was predicted of the same jobs so shortly before is good enough.
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
        """What would become of all if some more came."""
        return self._made({**base.jobs, **{job.id: job for job in jobs}}, base.outlook, base.begin)

    def keep(self, prediction: Prediction, jobs: Mapping[str, JobState], now: float) -> None:
        """This is what becomes of these jobs, as they were when they were admitted."""
        self._last, self._asked, self._made_at = prediction, dict(jobs), now
        self._begun &= jobs.keys()

    def in_time_after(self, job: JobState, base: Prediction, now: float, patience_s: float) -> float:
        """Seconds after which a job that comes then is done ``patience_s`` later, and makes nobody late.

        A few times are tried; when all the others are done it is alone.
        """
        backlog_s = base.backlog_s(now)
        latest_s = max(0.0, backlog_s + left_s(job, self._costs) - patience_s)  # in time even behind all of it
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
        """When the gang is where the outlook says: when that was first seen, or when there will be ranks."""
        if outlook.ready_in_s:
            return now + outlook.ready_in_s
        return min(now, self._last.begin) if self._last is not None and self._last.outlook.jobs is outlook.jobs else now

    def _known(self, jobs: Mapping[str, JobState], outlook: Outlook) -> dict[str, JobState]:
        """The jobs as far as they are. One that the gang told of, and does not any more, is over."""
        told = {job.id: job for job in outlook.jobs}
        present = {}
        for id, job in jobs.items():
            if id in told:
                self._begun.add(id)
                # Without ranks what was done is lost.
                present[id] = replace(told[id], calls_done=None) if outlook.ready_in_s else told[id]
            elif id not in self._begun:
                present[id] = job
        return present


def moved(job: JobState, at: float) -> JobState:
    """The same job if it comes at another time."""
    return replace(job, arrived=at, deadline=job.deadline - job.arrived + at)
