"""Schedules of jobs with simple costs: random traces, a single plan, and all plans until the jobs are done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules
from raycache.gang.scheduler import plan
from raycache.gang.simulator import Forecast, simulated
from tests.helpers.plain_costs import plain_job as job

__all__ = ["ALONE", "PROPERTY", "one_plan", "ran", "traces"]

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
ALONE = Rules(max_rows=1, max_active=1000)


def ran(
    jobs: Iterable[JobState], costs: CallCosts, rules: Rules
) -> tuple[dict[str, Forecast], list[tuple[float, float, Plan]]]:
    """The forecasts, and the ticks as (begin, end, plan)."""
    ticks: list[tuple[float, float, Plan]] = []
    told = simulated(jobs, costs, rules, 0.0, on_tick=lambda *tick: ticks.append(tick))
    return told, ticks


@st.composite
def traces(draw: st.DrawFn, deadlines: bool = False, callers: str = "a", most: int = 7) -> list[JobState]:
    """Jobs that take whole seconds, so that sums are exact."""
    jobs = []
    for i in range(draw(st.integers(1, most))):
        arrived = float(draw(st.integers(0, 20)))
        calls, tokens = draw(st.integers(1, 8)), float(draw(st.integers(1, 3)))
        slack = draw(st.integers(0, 25)) if deadlines and draw(st.booleans()) else math.inf
        deadline = arrived + calls * tokens + slack
        key = draw(st.sampled_from(["dbcache", "dbprune", None]))
        caller = draw(st.sampled_from(callers))
        jobs.append(job(f"j{i}", calls, tokens, arrived, deadline=deadline, joins=key, caller=caller))
    return jobs


def one_plan(jobs: Sequence[JobState], costs: CallCosts, **rules: Any) -> Plan:
    """The next tick of jobs whose callers have used nothing yet."""
    return plan(jobs, costs, Rules(**rules), Accounts().present({each.caller for each in jobs}), 0.0)
