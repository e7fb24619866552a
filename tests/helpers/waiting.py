"""Clients of the real admission that return after `Retry-After`, with a simulated clock."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cache_core import NoCacheOptions
from raycache.engine.admission import Admission, Ticket
from raycache.gang.costs import Costs, Work
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import Accounts, JobState, Plan, Rules, settled
from raycache.gang.scheduler import plan
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.settings import AppSettings
from raycache.size import Size

SHORT, LONG = (Work(Size(128, 128), 1, steps, NoCacheOptions()) for steps in (10, 50))
FIFO = Rules(scheduling="fifo", max_active=1)


def output(seconds: float) -> JobOutput:
    return JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, 0.0, seconds, 0.0)


@dataclass
class World:
    """One gang that runs by the real schedule, clients, and a clock. Actual times are independent of the predictions.

    ``step_s``: seconds of a step, ``noise``: how much that varies from job to job, ``row``: the share of it for another
    row; ``rebuilt_at``: when there will be ranks again, ``said_s``: how long the gang expects that to take.
    """

    step_s: float = 0.1
    noise: float = 0.0
    row: float = 0.8
    rebuilt_at: float = 0.0
    said_s: float = 0.0
    rules: Rules = FIFO
    policy: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now, self.luck, self.costs = 0.0, random.Random(3), Costs()
        policy = AppSettings.model_validate({"model": {"path": "noise"}}).policy
        policy = policy.changed({"max_queued_requests": 3, **self.policy, "limits": self.limits})
        self.admission = Admission(policy, self.costs, self.outlook, lambda: self.now)
        for work in (SHORT, LONG, SHORT, LONG):
            self.costs.learn(work, output(work.steps * self.step_s))
        self.jobs: tuple[JobState, ...] = ()
        self.accounts, self._drawing = Accounts(), False
        self.held: dict[str, tuple[Ticket, Work]] = {}
        self._learned: Counter[int] = Counter()
        self.slower: dict[str, float] = {}  # factor on the seconds of a job's steps
        self.took: dict[str, float] = {}
        self.most = 0
        self.told: list[tuple[float, int]] = []  # seconds, and the number of the attempt
        self.missed: list[str] = []  # jobs that were admitted and were late
        self.done: list[str] = []
        self._events: list[tuple[float, int, Any]] = []
        self._number = itertools.count()

    @property
    def queue(self) -> list[Ticket]:
        return [ticket for ticket, _ in self.held.values()]

    def outlook(self) -> Outlook:
        left = max(0.0, self.said_s - self.now) if self.now < self.rebuilt_at else 0.0
        return Outlook(self.jobs, self.accounts, self.rules, left)

    def at(self, when: float, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._number), what))

    def run(self, until: float) -> None:
        self.at(self.rebuilt_at, self._draw)
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def admit(self, name: str, work: Work, timeout_s: float = 300.0, key: str | None = None) -> Ticket:
        id = f"{next(self._number):06} {name}"  # jobs that arrive at the same time run in order of their ids
        return self.admission.admit(id, work, timeout_s, key=key, mark=(name, key, work))

    def arrive(self, name: str, work: Work, *, tries: int = 0, key: str | None = None, timeout_s: float = 300.0):
        """A client that arrives, and returns exactly when it is told."""
        try:
            ticket = self.admit(name, work, timeout_s, key)
        except RequestError as error:
            (after,) = [int(value) for header, value in error.headers().items() if header == "retry-after"]
            self.told.append((after, tries))
            again = lambda: self.arrive(name, work, tries=tries + 1, key=key, timeout_s=timeout_s)  # noqa: E731
            self.at(self.now + after, again)
            return
        id = ticket.job.id
        self.held[id], self.slower[id], self.took[id] = (ticket, work), self.luck.lognormvariate(0, self.noise), 0.0
        self.jobs = (*self.jobs, ticket.job)
        self.most = max(self.most, len(self.held))
        self._draw()

    def _draw(self) -> None:
        if self._drawing or self.now < self.rebuilt_at or not self.jobs:
            return
        self.accounts = self.accounts.present({job.caller for job in self.jobs})
        tick = plan(self.jobs, self.costs, self.rules, self.accounts, self.now)
        begun = {*tick.start}
        self.jobs = tuple(replace(job, calls_done=0) if job.id in begun else job for job in self.jobs)
        self._drawing = True
        self.at(self.now + sum(map(self._call, tick.calls)), lambda: self._drawn(tick))

    def _call(self, ids: Sequence[str]) -> float:
        seconds = self.step_s * (1 + self.row * (len(ids) - 1)) * max(self.slower[id] for id in ids)
        for id in ids:
            self.took[id] += seconds / len(ids)
        if len(ids) > 1 and self._learned[len(ids)] < 3:  # learning takes milliseconds
            self._learned[len(ids)] += 1
            self.costs.called([self.held[id][0].job for id in ids], seconds)
        return seconds

    def _drawn(self, tick: Plan) -> None:
        self._drawing, present = False, self.jobs
        self.accounts = self.accounts.charged(tick.charges)
        self.jobs = settled(self.jobs, tick)
        for id in {job.id for job in present} - {job.id for job in self.jobs}:
            ticket, work = self.held.pop(id)
            if id in tick.abort or ticket.job.deadline < self.now:
                self.missed.append(id)
            if id in tick.end:
                self.done.append(id)
                if not any(len(call) > 1 for call in tick.calls):
                    self.costs.learn(work, output(self.took[id]))
            self.admission.release(ticket)
        self._draw()

    @property
    def twice(self) -> list[float]:
        """The seconds told to clients that had already waited as long as they were told before."""
        return [after for after, tries in self.told if tries]


class Unsure:
    """Costs whose predictions were off by a share so far."""

    def __init__(self, costs: Costs, error: float) -> None:
        self._costs, self.error = costs, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._costs, name)
