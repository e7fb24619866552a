"""Locust users: sources of a Poisson stream (open loop), and clients that wait for each answer (closed loop).

The sum of Poisson streams is a Poisson stream, so a number of :class:`OpenLoop` users *is* an arrival rate: shapes, the
web UI and ``--processes`` work on it as on any other user count. Locust's usual loop is closed: a slow server reduces
its own load, and queueing is never observed.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from gevent.pool import Group
from locust import HttpUser, constant, tag, task

from loadtests.mix import Ask, Mix
from loadtests.records import Record, Recorder
from loadtests.requesting import send

__all__ = ["ClosedLoop", "OpenLoop", "Plan"]


@dataclass
class Plan:
    """What the users of one run do; locust's environment carries it as ``environment.plan``.

    Attributes:
        rate_per_user: requests per second of one open-loop user.
        abandonment: share of requests whose client hangs up at a random time within ``abandon_within`` seconds.
        check: share of answers whose images are decoded; all are compared byte for byte.
        patience: seconds that a client waits for an answer.
        seed: of all random choices in the run; ``worker``: number of this process among those that share the users.
        under_way: requests in progress that no user waits for; their source may have stopped.
        began: ``time.monotonic()`` at the start.
    """

    mix: Mix
    rate_per_user: float = 0.05
    abandonment: float = 0.0
    abandon_within: float = 5.0
    check: float = 0.25
    patience: float = 300.0
    seed: int = 0
    worker: int = 0
    recorder: Recorder = field(default_factory=Recorder)
    began: float = field(default_factory=time.monotonic)
    users: int = 0
    under_way: Group = field(default_factory=Group)

    def next_source(self) -> random.Random:
        """A random source for one more user: unique over all processes, and the same in every run with this seed.

        Two users with one source would send the same requests at the same time, which is not a Poisson stream.
        """
        self.users += 1
        return random.Random(f"{self.seed}/{self.worker}/{self.users}")


class _Client(HttpUser):
    abstract = True
    plan: Plan

    def on_start(self) -> None:
        self.plan = self.environment.plan
        self.rng = self.plan.next_source()

    def _ask(self, intended: float) -> None:
        plan, rng = self.plan, self.rng
        ask: Ask = plan.mix.draw(rng)
        leaves = rng.random() < plan.abandonment
        patience = rng.uniform(0.1, plan.abandon_within) if leaves else plan.patience
        record = Record(ask.kind, ask.seed, intended)
        check = rng.random() < plan.check
        send(self.client, ask, record, plan.recorder, plan.began, patience=patience, leaves=leaves, check=check)


class OpenLoop(_Client):
    """A source of requests that never waits for the server. Latency counts from the intended start."""

    def on_start(self) -> None:
        super().on_start()
        self._next = time.monotonic() - self.plan.began
        self.wait()  # a source does not start with an arrival

    def wait_time(self) -> float:
        """Seconds until this source's next arrival; from its own clock, so that a late client catches up."""
        self._next += self.rng.expovariate(self.plan.rate_per_user)
        return max(0.0, self._next - (time.monotonic() - self.plan.began))

    @tag("open")
    @task
    def arrive(self) -> None:
        """Send the request that is due, whatever the state of earlier ones."""
        self.plan.under_way.spawn(self._ask, self._next)


class ClosedLoop(_Client):
    """A client that sends again as soon as it has its answer: for saturation."""

    wait_time = constant(0)

    @tag("closed")
    @task
    def ask(self) -> None:
        """One request."""
        self._ask(time.monotonic() - self.plan.began)
