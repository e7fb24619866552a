"""Drives one run: locust's users in a shape, injected faults, until the last answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import gevent
from locust.env import Environment
from rich.progress import Progress

from loadtests.server import sizes
from loadtests.shapes import Burst, Constant, Shape, Steps
from loadtests.steps import Level, missed
from loadtests.users import ClosedLoop, OpenLoop, Plan
from raycache.testing.inject import kill_rank

__all__ = ["Run", "Scenario", "drive"]


class Scenario(StrEnum):
    """open: Poisson arrivals; closed: users that wait; step: the rate rises until the goal is missed; burst: short
    floods; soak: open and long, with clients that leave and ranks that are killed."""

    open = "open"
    closed = "closed"
    step = "step"
    burst = "burst"
    soak = "soak"


@dataclass
class Run:
    """How a run went.

    Attributes:
        faults: injected faults, ``at`` seconds.
        levels: the steps of a rising rate; empty for other scenarios.
        offering: seconds until the last request was sent.
        length: seconds until the last request ended.
    """

    faults: list[dict[str, Any]] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    offering: float = 0.0
    length: float = 0.0


class _Environment(Environment):
    """Locust's environment, with the plan of its users."""

    plan: Plan


def drive(
    url: str,
    scenario: Scenario,
    plan: Plan,
    *,
    seconds: float,
    rate: float,
    users: int,
    deadline: float,
    kill: float | None,
) -> Run:
    """Run locust to the end of the shape and of every request.

    Args:
        rate: requests per second at first, or in the normal load; closed loops have ``users`` instead.
        kill: seconds between two kills of ranks; None for none.
    """
    closed = scenario is Scenario.closed
    # At least four sources, so that their requests mix; their rates add up to the requested rate.
    sources = users if closed else max(4, round(rate / plan.rate_per_user))
    plan.rate_per_user = rate / sources
    shape = _shape(scenario, plan, sources, seconds, deadline)
    environment = _Environment(
        user_classes=[ClosedLoop if closed else OpenLoop], host=url, shape_class=shape, stop_timeout=plan.patience
    )
    environment.plan = plan
    runner = environment.create_local_runner()
    run = Run()
    plan.began = time.monotonic()
    runner.start_shape()
    greenlet = runner.shape_greenlet
    assert greenlet is not None  # it was started
    greenlet.link(lambda _: setattr(run, "offering", time.monotonic() - plan.began))
    killer = gevent.spawn(_kill_ranks, url, kill, seconds, plan, run.faults) if kill else None
    _watch(scenario, greenlet, plan, seconds)
    run.length = time.monotonic() - plan.began
    if killer:
        killer.kill()
    runner.quit()
    if isinstance(shape, Steps):
        run.levels = _levels(shape, plan, run.offering)
    return run


def _watch(scenario: Scenario, shape: Any, plan: Plan, seconds: float) -> None:
    """Wait for the end, with a progress bar that ends full however the run ends."""
    with Progress() as progress:
        bar = progress.add_task(scenario.value, total=seconds)
        while not shape.ready() or len(plan.under_way):
            passed, waiting = time.monotonic() - plan.began, len(plan.under_way)
            last = f", waiting for the last {waiting}" if shape.ready() else ""
            progress.update(
                bar, completed=min(passed, seconds), description=f"{len(plan.recorder.records)} answers{last}"
            )
            gevent.sleep(0.5)
        progress.update(bar, completed=seconds, description=f"{len(plan.recorder.records)} answers")


def _shape(scenario: Scenario, plan: Plan, users: int, seconds: float, deadline: float) -> Shape:
    if scenario is Scenario.step:
        return Steps(users, seconds, missed=lambda window: _missed(plan, window, deadline))
    return Burst(users, seconds) if scenario is Scenario.burst else Constant(users, seconds)


def _missed(plan: Plan, window: float, deadline: float) -> bool:
    """Whether what ended in the last ``window`` seconds misses the goal."""
    since = time.monotonic() - plan.began - window
    return missed([record for record in plan.recorder.records if record.ended >= since], deadline)


def _levels(shape: Steps, plan: Plan, end: float) -> list[Level]:
    """The steps that the run reached, in seconds of the run, which started with the shape's clock.

    Locust asks the shape once a second, so a step starts up to a second after its time and is that much shorter than
    planned. It is whole if it lasted until its planned end, however late it started.
    """
    starts = [start for start, _ in shape.levels]
    return [
        # Six sixths of a run may be a rounding error longer than the run.
        Level(start, over, users * plan.rate_per_user, whole=over > (start // shape.hold + 1) * shape.hold - 1e-6)
        for (start, users), over in zip(shape.levels, [*starts[1:], end], strict=True)
    ]


def _kill_ranks(url: str, every: float, seconds: float, plan: Plan, faults: list[dict[str, Any]]) -> None:
    """SIGKILL one rank after another, each time of the next engine, for as long as the run lasts."""
    number = 0
    while time.monotonic() - plan.began + every < seconds:
        gevent.sleep(every)
        engines, ranks = sizes(url)
        try:
            engine, rank = number % engines, number // engines % (ranks // engines)
            kill_rank(url, rank, engine=engine)
        except (ZeroDivisionError, KeyError, IndexError, ProcessLookupError, TimeoutError):
            continue  # it is being rebuilt already
        what = f"SIGKILL of rank {rank}" + (f" of engine {engine}" if engines > 1 else "")
        faults.append({"at": round(time.monotonic() - plan.began, 2), "what": what})
        number += 1
