"""Simulates the schedule with the known costs: when each job will start and end.

It calls the same function as the gang's thread, so predictions are as accurate as the costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raycache.gang.ending import spread_s
from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules, settled
from raycache.gang.scheduler import plan

__all__ = ["Forecast", "Planner", "simulated"]

Planner = Callable[[Sequence[JobState], CallCosts, Rules, Accounts, float], Plan]

_SOON = 1e-6


@dataclass
class Forecast:
    """The predicted course of a job.

    Attributes:
        start: when it starts, None if never (or if it started before).
        end: when it is answered, or ends otherwise.
        drawn: whether it is completed; False: its deadline passed first.
    """

    start: float | None = None
    end: float = math.inf
    drawn: bool = False


def simulated(
    jobs: Iterable[JobState],
    costs: CallCosts,
    rules: Rules,
    now: float,
    accounts: Accounts | None = None,
    *,
    planner: Planner = plan,
    truth: CallCosts | None = None,
    on_tick: Callable[[float, float, Plan], None] | None = None,
) -> dict[str, Forecast]:
    """Forecasts by job id, for jobs present at ``now`` and jobs that arrive later.

    Args:
        truth: the real costs, if they differ from those that the planner knows.
        on_tick: called for every tick with its start, its end, and its plan.
    """
    later = sorted(jobs, key=lambda job: (job.arrived, job.id), reverse=True)
    forecasts = {job.id: Forecast() for job in later}
    accounts = accounts or Accounts()
    there: tuple[JobState, ...] = ()
    while later or there:
        if not there:
            accounts = accounts.present(set())
            now = max(now, later[-1].arrived)
        while later and later[-1].arrived <= now + _SOON:
            there = (*there, later.pop())
        accounts = accounts.present({job.caller for job in there})
        tick = planner(there, costs, rules, accounts, now)
        seconds = tick.seconds if truth is None else _seconds(tick, there, truth, rules)
        scale = seconds / tick.seconds if tick.seconds else 1.0
        accounts = accounts.charged({caller: part * scale for caller, part in tick.charges.items()})
        _note(forecasts, tick, now, now + seconds)
        if on_tick is not None:
            on_tick(now, now + seconds, tick)
        there = settled(there, tick)
        now += seconds
    return forecasts


def _note(forecasts: dict[str, Forecast], tick: Plan, began: float, ended: float) -> None:
    for job in tick.start:
        forecasts[job].start = began
    for job in tick.abort:
        forecasts[job].end = began
    for job in tick.end:
        forecasts[job].end, forecasts[job].drawn = ended, True


def _seconds(tick: Plan, jobs: Sequence[JobState], truth: CallCosts, rules: Rules) -> float:
    """The real duration of a plan."""
    by_id = {job.id: job for job in jobs}
    seconds = sum(truth.start_s(by_id[job]) for job in tick.start)
    seconds += spread_s([by_id[job] for job in tick.end], truth, rules.decoders)
    return seconds + sum(truth.call_s([by_id[job] for job in call]) for call in tick.calls)
