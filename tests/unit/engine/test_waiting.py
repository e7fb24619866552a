"""Arrivals against the real admission with a clock of their own: who waits as long as it was told gets in."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

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

    ``step_s``: what a step takes, ``noise``: how much that varies, ``mended_at``: when there will be ranks again,
    ``said_s``: how long the gang believes that it takes.
    """

    step_s: float = 0.1
    noise: float = 0.0
    mended_at: float = 0.0
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
        self.at(self.mended_at, lambda: None)
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def arrive(self, name: str, work: Work, *, tries: int = 0, key: str | None = None, timeout_s: float = 300.0):
        """A client that comes, and comes again exactly when it is told."""
        left = max(0.0, self.said_s - self.now) if self.now < self.mended_at else 0.0
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
        self.at(max(self.now, self.mended_at) + seconds, lambda: self._drawn(seconds))

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


@pytest.mark.parametrize("same", [True, False], ids=["all alike", "each another"])
@pytest.mark.parametrize("step_s", [0.002, 0.05, 0.1, 1.0])
def test_a_burst_over_the_queue_gets_in_when_told(step_s: float, same: bool):
    """All sixteen come at once; four find room, and no second refusal follows the first."""
    world = World(step_s=step_s)
    for number in range(16):
        world.at(0.0, lambda number=number: world.arrive("a" if same else str(number), SHORT))
    world.run(1e5)
    assert len(world.told) == 12
    assert world.twice == []
    assert world.most == 4, "nobody had to be let in beyond the limit"
    # Nor is anybody told to wait much longer than the work before it takes.
    assert max(after for after, _ in world.told) <= 1.5 * 16 * 10 * step_s + 5


@pytest.mark.parametrize("rebuild_s", [5.0, 23.0, 60.0])
def test_while_ranks_are_rebuilt(rebuild_s: float):
    """It was 1 s whatever the rebuild takes, and none of twelve got in."""
    world = World(mended_at=rebuild_s, said_s=rebuild_s)
    for number in range(16):
        world.at(0.3 * number, lambda number=number: world.arrive(str(number), SHORT))
    world.run(1e5)
    assert len(world.told) == 12
    assert world.twice == []
    assert world.most == 4
    assert min(after for after, _ in world.told) > rebuild_s - 5


def test_a_rebuild_that_takes_half_as_long_again_breaks_no_promise():
    world = World(mended_at=30.0, said_s=20.0)
    for number in range(16):
        world.at(0.3 * number, lambda number=number: world.arrive(str(number), SHORT))
    world.run(1e5)
    assert world.twice == []


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_crowd_that_keeps_coming(noise: float):
    """One and a half times what the gang can draw, of short and long jobs, for ten minutes."""
    world = World(noise=noise, policy={"max_queued_requests": 8, "max_queued_seconds": 40.0})
    luck, at = random.Random(5), 0.0
    for number in itertools.count():
        at += luck.expovariate(1.5 / 3.0)
        if at > 600:
            break
        work = luck.choice([SHORT, LONG])
        world.at(at, lambda number=number, work=work: world.arrive(str(number), work))
    world.run(1e5)
    first = [after for after, tries in world.told if not tries]
    assert len(first) > 50
    assert len(world.twice) <= 0.05 * len(first)
    assert world.most <= (9 if not noise else 15), "promises that came due a little early go beyond the limit"
    if not noise:
        assert world.twice == []


def test_a_deadline_is_told_when_it_can_be_met():
    world = World(policy={"max_queued_requests": 30})
    for number in range(5):
        world.at(0.0, lambda number=number: world.arrive(f"long {number}", LONG))
    world.at(0.5, lambda: world.arrive("hasty", SHORT, timeout_s=8.0))
    world.run(0.5)
    ((after, _),) = world.told
    # 24.5 s of work are before it, it takes 1 s, and 8 s are allowed.
    assert 17.5 <= after <= 19
    world.run(1e5)
    assert world.twice == []


def test_limits_of_a_key_are_its_own():
    world = World(policy={"max_queued_requests": 30}, limits={"max_jobs_per_key": 2, "max_queued_seconds_per_key": 8.0})
    for number in range(4):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT, key="greedy"))
    world.at(0.0, lambda: world.arrive("long", LONG, key="heavy"))
    world.at(0.1, lambda: world.arrive("long too", LONG, key="heavy"))
    world.at(0.2, lambda: world.arrive("modest", SHORT, key="modest"))
    world.at(0.2, lambda: world.arrive("nobody", SHORT))
    world.run(0.3)
    assert len(world.told) == 3
    assert [(ticket.key, ticket.work.steps) for ticket in world.queue] == [
        ("greedy", 10), ("greedy", 10), ("heavy", 50), ("modest", 10), (None, 10)
    ]  # fmt: skip
    world.run(1e5)
    assert world.twice == []


def test_a_client_that_comes_too_early_waits_no_less_and_steals_nothing():
    world = World()
    for number in range(8):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT))
    early = [0.2 * number for number in range(1, 60)]
    for at in early:
        world.at(at, lambda: refused(world, "pushy"))
    world.run(1e5)
    assert world.twice == []


def refused(world: World, name: str) -> None:
    """A client that asks again and again, and leaves as soon as it is let in."""
    with contextlib.suppress(RequestError):
        world.admission.release(world.admission.admit(SHORT, 300.0, mark=name))


def test_places_kept_for_clients_that_never_come_are_free_again():
    world = World()
    for number in range(8):
        world.at(0.0, lambda number=number: world.arrive(str(number), SHORT))
    world.run(0.0)
    world._events = [event for event in world._events if event[0] < 1.5]  # nobody comes back
    world.run(1.5)
    world.now = 100.0
    for ticket in list(world.queue):
        world.admission.release(ticket)
    for number in range(4):
        world.admission.admit(SHORT, 300.0, mark=f"new {number}")


def promised_nobody(world: World, mending_s: float = 0.0, timeout_s: float = 300.0) -> None:
    """Twelve were told to come again who are never heard of any more, and whoever was let in is done."""
    held = []
    for number in range(16):
        with contextlib.suppress(RequestError):
            held.append(world.admission.admit(SHORT, timeout_s, mending_s, mark=f"gone {number}"))
    for ticket in held:
        world.admission.release(ticket)


@pytest.mark.parametrize("at", [0.0, 4.0, 6.0, 12.0])
@pytest.mark.parametrize("work", [SHORT, LONG], ids=["short", "long"])
def test_an_idle_gang_draws_whoever_is_there(work: Work, at: float):
    world = World()
    promised_nobody(world)
    world.now = at
    world.admission.admit(work, 300.0, mark="here")
    if work is LONG:
        with pytest.raises(RequestError, match="kept for clients"):
            world.admission.admit(work, 300.0, mark="one more")


def test_whom_another_engine_may_draw_no_place_is_kept_for():
    """The ingress asks one when an engine has lost its ranks; whether it did, the first is never told."""
    world = World()
    promised_nobody(world, mending_s=5.0, timeout_s=5.0)
    for number in range(4):
        world.admission.admit(LONG, 300.0, mark=f"here {number}")


def test_nobody_is_refused_for_the_sake_of_clients_that_were_told_to_wait_for_minutes():
    """Those that do come back get in all the same."""
    world = World(step_s=30.0, policy={"max_queued_seconds": 1e6})
    promised_nobody(world, timeout_s=1e6)
    for number in range(4):
        world.admission.admit(LONG, 1e6, mark=f"here {number}")
    world.now = 2000.0
    with pytest.raises(RequestError):
        world.admission.admit(SHORT, 1e6, mark="stranger")
    told = [promise for promise in world.admission._line._promises if promise.at <= world.now <= promise.until]
    for promise in told:
        world.admission.admit(SHORT, 1e6, mark=promise.mark)
    assert told
