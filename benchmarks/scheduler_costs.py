"""What scheduling costs, between calls and per plan; and how accurately the gang predicts the cost of calls."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from benchmarks.ways import FIFO, NO_CACHE, TIMEOUT_S, Amounts, Both, Row, Ticks, Way, in_turns
from raycache.gang.costs import work_of
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.gang.scheduler import plan

__all__ = ["between_calls_s", "learned_costs", "overhead", "planning"]

#: Images of the calls whose costs are compared.
_ROWS = (1, 2, 4, 8)


def overhead(both: Both, amounts: Amounts) -> list[Row]:
    """What a single job spends outside calls, encoding and decoding: over the whole job, and between two calls."""
    rows = []
    for size in ("64x64", "256x256"):
        whole, between = Row(f"outside calls, {size} alone, mean", "ms/step"), Row(f"between calls, {size}, p50", "ms")
        for _, pair in in_turns(both, amounts.rounds):
            seen = {way.name: _besides_ms(way, size, amounts.long_steps) for way in pair}
            whole.add({way: value[0] for way, value in seen.items()})
            between.add({way: value[1] for way, value in seen.items()})
        rows += [whole, between]
    return rows


def _besides_ms(way: Way, size: str, steps: int) -> tuple[float, float]:
    """Per step, including submission and answer; and the median between the reports of two ticks."""
    way.recorder.take()
    job = way.job(size=size, num_inference_steps=steps, cache=NO_CACHE)
    began = time.monotonic()
    output = way.submit(job).future.result(TIMEOUT_S)
    seconds = time.monotonic() - began
    ticks = way.recorder.take()
    calls_s = sum(call.seconds for _, report in ticks for call in report.calls)
    between = between_calls_s(ticks)
    return 1000 * (seconds - calls_s - output.encode_s - output.decode_s) / steps, 1000 * statistics.median(between)


def between_calls_s(ticks: Ticks) -> list[float]:
    """From one tick's report to the next, minus the next tick's own time, for ticks that only made calls."""
    pairs = [(came - before, report) for (before, _), (came, report) in pairwise(ticks)]
    return [
        seconds - sum(call.seconds for call in report.calls)
        for seconds, report in pairs
        if report.calls and not report.started_s and not report.outputs
    ]


def planning(both: Both, amounts: Amounts, *, active: int = 8, waiting: int = 24, times: int = 50) -> list[Row]:
    """How long one plan takes with the costs that the gang has learned, and right after it has learned new ones."""
    name = f"a plan, {active} active, {waiting} waiting"
    known, anew = Row(name, "ms"), Row(f"{name}, costs just learned", "ms")
    for way in both.values():
        states = _states(way, active, waiting)
        rules = Rules(scheduling="fifo", max_rows=1, max_active=1) if way.name == FIFO else Rules(max_rows=8)
        for row, forget in ((known, False), (anew, True)):
            row.add({way.name: statistics.median(_plans_ms(way, states, rules, forget) for _ in range(times))})
    return [known, anew]


def _states(way: Way, active: int, waiting: int) -> list[JobState]:
    rng, states = random.Random(0), []
    for number in range(active + waiting):
        size, steps = rng.choice(("64x64", "128x128", "256x256")), rng.choice((4, 10, 28))
        job = way.job(size=size, num_inference_steps=steps)
        times = {"arrived": float(number), "deadline": number + 300.0}
        state = way.gang.costs.job_state(job.id, work_of(job), caller=f"{number % 4}", **times)
        states.append(replace(state, calls_done=rng.randrange(steps)) if number < active else state)
    return states


def _plans_ms(way: Way, states: Sequence[JobState], rules: Rules, forget: bool) -> float:
    if forget:
        way.gang.costs.meet(way.gang.capabilities())  # drops cached predictions, as learning does
    accounts = Accounts().present({state.caller for state in states})
    began = time.perf_counter()
    plan(states, way.gang.costs, rules, accounts, float(len(states)))
    return 1000 * (time.perf_counter() - began)


def learned_costs(way: Way, size: str, steps: int = 6) -> list[list[str]]:
    """Rows of a call, its predicted seconds, and its measured seconds; predicted before any of them was run."""
    told = {}
    jobs = {rows: way.job(seeds=range(rows), size=size, num_inference_steps=steps, cache=NO_CACHE) for rows in _ROWS}
    for rows, job in jobs.items():
        state = way.gang.costs.job_state(job.id, work_of(job), arrived=0.0, deadline=1e9, caller="")
        told[rows] = way.gang.costs.call_s((state,))
    figures = []
    for rows, job in jobs.items():
        way.recorder.take()
        way.draw_s(job)
        took = statistics.median(call.seconds for _, report in way.recorder.take() for call in report.calls)
        figures.append([size, str(rows), f"{told[rows]:.4f}", f"{took:.4f}", f"{told[rows] / took:.2f}"])
    return figures
