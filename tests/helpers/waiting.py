"""Clients that come to the real admission, and come again when they are told, with a clock of their own."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache_core import NoCacheOptions
from raycache.engine.admission import Admission, Ticket
from raycache.gang.costs import Costs, Work
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.settings import AppSettings

SHORT, LONG = (Work(128, 128, 1, steps, NoCacheOptions()) for steps in (10, 50))


def output(seconds: float) -> JobOutput:
    return JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, 0.0, seconds, 0.0)


@dataclass
class World:
    """One gang that draws one job after the other, clients, and a clock. Nothing here predicts anything.

    ``step_s``: what a step takes, ``noise``: how much that varies, ``rebuilt_at``: when there will be ranks again,
    ``said_s``: how long the gang believes that it takes.
    """

    step_s: float = 0.1
    noise: float = 0.0
    rebuilt_at: float = 0.0
    said_s: float = 0.0
    policy: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now, self.luck, self.costs = 0.0, random.Random(3), Costs()
        policy = AppSettings.model_validate({"model": {"path": "noise"}}).policy
        policy = policy.changed({"max_queued_requests": 3, **self.policy, "limits": self.limits})
        self.admission = Admission(policy, self.costs, lambda: self.now)
        for work in (SHORT, LONG, SHORT, LONG):
            self.costs.learn(work, output(work.steps * self.step_s))
        self.queue: list[Ticket] = []
        self.most = 0
        self.told: list[tuple[float, int]] = []  # seconds, and which try it was
        self._events: list[tuple[float, int, Any]] = []
        self._number = itertools.count()

    def at(self, when: float, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._number), what))

    def run(self, until: float) -> None:
        self.at(self.rebuilt_at, lambda: None)
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def arrive(self, name: str, work: Work, *, tries: int = 0, key: str | None = None, timeout_s: float = 300.0):
        """A client that comes, and comes again exactly when it is told."""
        left = max(0.0, self.said_s - self.now) if self.now < self.rebuilt_at else 0.0
        try:
            ticket = self.admission.admit(work, timeout_s, left, key=key, mark=(name, key, work))
        except RequestError as error:
            (after,) = [int(value) for header, value in error.headers().items() if header == "retry-after"]
            self.told.append((after, tries))
            again = lambda: self.arrive(name, work, tries=tries + 1, key=key, timeout_s=timeout_s)  # noqa: E731
            self.at(self.now + after, again)
            return
        self.queue.append(ticket)
        self.most = max(self.most, len(self.queue))
        if len(self.queue) == 1:
            self._draw()

    def _draw(self) -> None:
        seconds = self.queue[0].work.steps * self.step_s * self.luck.lognormvariate(0, self.noise)
        self.at(max(self.now, self.rebuilt_at) + seconds, lambda: self._drawn(seconds))

    def _drawn(self, seconds: float) -> None:
        ticket = self.queue.pop(0)
        self.costs.learn(ticket.work, output(seconds))
        self.admission.release(ticket)
        if self.queue:
            self._draw()

    @property
    def twice(self) -> list[float]:
        """What clients were told that had waited as long as they were told before."""
        return [after for after, tries in self.told if tries]


class Unsure:
    """Costs that were wrong by a share so far."""

    def __init__(self, costs: Costs, error: float) -> None:
        self._costs, self.error = costs, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._costs, name)
