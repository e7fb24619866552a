"""The schedule run forward on what is known of costs: when each job will start and end, and when a new one would.

It calls the same function as the gang's thread, so what is predicted is what will be done, as far as costs are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from raycache.gang.ending import spread_s
from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules, settled
from raycache.gang.scheduler import plan

__all__ = ["Forecast", "Planner", "retry_after", "simulated"]

Planner = Callable[[Sequence[JobState], CallCosts, Rules, Accounts, float], Plan]

_SOON = 1e-6
#: A client is not told to wait longer than this; nor are more times tried than these.
_LONGEST_S, _TRIES = 3600.0, 16


@dataclass
class Forecast:
    """What becomes of a job.

    Attributes:
        start: when it is taken up, None if never (or before).
        end: when it is answered, or over.
        drawn: whether it is drawn; False: its deadline passed first.
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
    """Forecasts by job id, of jobs that are there at ``now`` and that arrive later.

    Args:
        truth: what things really cost, where the planner does not know.
        on_tick: told of every tick: when it begins, when it ends, and its plan.
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
    """What a plan really takes."""
    by_id = {job.id: job for job in jobs}
    seconds = sum(truth.start_s(by_id[job]) for job in tick.start)
    seconds += spread_s([by_id[job] for job in tick.end], truth, rules.decoders)
    return seconds + sum(truth.call_s([by_id[job] for job in call]) for call in tick.calls)


def retry_after(
    new: JobState,
    jobs: Sequence[JobState],
    costs: CallCosts,
    rules: Rules,
    now: float,
    accounts: Accounts | None = None,
    *,
    patience_s: float = math.inf,
) -> int | None:
    """Whole seconds after which ``new`` is in time and makes nobody late; 0: now. None: no time was found.

    Args:
        new: as it would be if it came now; its arrival is moved.
        jobs: all that are there.
        patience_s: it must be done so soon after it arrived.
    """
    without = simulated(jobs, costs, rules, now, accounts)
    kept = {job for job, forecast in without.items() if forecast.drawn}
    ends = [forecast.end - now for forecast in without.values()]
    # Room comes where a job ends, or halfway there: by then part of the work is done.
    waits = {0, *(math.ceil(end * part) for end in ends for part in (0.5, 1.0))}
    tried = sorted(wait for wait in waits if wait <= _LONGEST_S)
    if len(tried) > _TRIES:
        tried = [tried[round(i * (len(tried) - 1) / (_TRIES - 1))] for i in range(_TRIES)]
    for wait in tried:
        at = now + wait
        moved = replace(new, arrived=at, deadline=at + patience_s)
        forecasts = simulated([*jobs, moved], costs, rules, now, accounts)
        if forecasts[new.id].drawn and all(forecasts[job].drawn for job in kept):
            return wait
    return None
