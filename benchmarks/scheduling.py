"""One trace, three ways to schedule it: first come first served, request batching, and the step scheduler.

    python -m benchmarks.scheduling [--seconds 600 --load 0.9 --goal 60] [--image TIMELINE.png] [--out TABLE.md]

The scheduler, the simulator and the learned costs are those of production; the machine is a cost model with noise,
which the scheduler knows only from measurements. Generates no images and needs no GPU.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from benchmarks.capacity_model import FLUX_DEV_1024, L20, seconds
from benchmarks.report import quantile, show_table
from raycache.gang.call_costs import LearnedCallCosts
from raycache.gang.schedule import Accounts, CallCosts, JobState, Plan, Rules
from raycache.gang.scheduler import left_s, plan
from raycache.gang.simulator import Forecast, Planner, simulated

_TEXT_TOKENS = 512
#: Pixels per side, steps, caller, and weight among the others.
_MIX = ((512, 4, "chat", 8), (512, 28, "chat", 3), (1024, 28, "studio", 2), (1024, 50, "studio", 2))
_Bars = dict[str, list[tuple[float, float]]]


class Machine:
    """Four L20s by the capacity model: a call has a fixed part and a part that grows with tokens.

    ``fixed_s`` is the time of a call's launches and messages, however small it is: an assumption, as in the model.
    """

    fixed_s = 0.04

    def __init__(self) -> None:
        whole = (seconds(FLUX_DEV_1024, L20, 4) - FLUX_DEV_1024.serial_s) / FLUX_DEV_1024.steps
        tokens = FLUX_DEV_1024.tokens
        self._token_s = (whole - self.fixed_s) / (tokens + tokens**2 / 18000)

    def call_s(self, jobs: Sequence[JobState]) -> float:
        """Seconds of one call with all rows of these jobs."""
        tokens = jobs[0].tokens
        rows = sum(job.rows * job.share for job in jobs) * (tokens + tokens**2 / 18000)
        return self.fixed_s + self._token_s * rows

    def start_s(self, job: JobState) -> float:
        """Seconds of encoding."""
        return 0.2

    def end_s(self, job: JobState) -> float:
        """Seconds of decoding."""
        return 0.4 * job.rows * (job.tokens - _TEXT_TOKENS) / 4096

    def bytes_of(self, job: JobState) -> float:
        """Bytes of latents and of two residuals of the cache, in bfloat16, on each of four ranks."""
        return job.rows * job.tokens * 3072 * 2 * 3 / 4

    def max_rows(self, job: JobState) -> float:
        """Rows that fit into one call."""
        return 16.0


def taught(machine: Machine, jobs: Sequence[JobState], rng: random.Random) -> LearnedCallCosts:
    """Costs as a gang learns them from the kinds of jobs in the trace, each measured with 5 % noise."""
    costs = LearnedCallCosts()
    for job in {job.shape: job for job in jobs}.values():
        costs.started(job, machine.start_s(job))
        costs.ended(job, machine.end_s(job))
        costs.held(job, machine.bytes_of(job))
        for rows in (1, 2, 4):
            for _ in range(3):
                many = replace(job, rows=rows)
                costs.called([many], machine.call_s([many]) * rng.uniform(0.95, 1.05))
    return costs


def trace(machine: Machine, length_s: float, load: float, rng: random.Random) -> list[JobState]:
    """Poisson arrivals of a job mix that, run one at a time, take ``load`` of the time; and two bursts."""
    kinds = [job_of(machine, *kind[:3]) for kind in _MIX]
    weights = [kind[3] for kind in _MIX]
    mean_s = statistics.fmean(
        left_s(kind, machine) for kind, weight in zip(kinds, weights, strict=True) for _ in range(weight)
    )
    arrivals, at = [], 0.0
    while (at := at + rng.expovariate(load / mean_s)) < length_s:
        arrivals.append((at, rng.choices(kinds, weights)[0]))
    for burst in (0.2, 0.6):
        arrivals += [(burst * length_s, kinds[-1])] * 6  # one caller sends a whole batch
    arrivals.sort(key=lambda arrival: arrival[0])
    return [replace(kind, id=f"{i:04d}", arrived=at) for i, (at, kind) in enumerate(arrivals)]


def job_of(machine: Machine, side: int, steps: int, caller: str) -> JobState:
    """A job that has not arrived yet: a square image of ``side`` pixels, 60 % of its blocks computed."""
    tokens = float(side**2 // 256 + _TEXT_TOKENS)
    return JobState(
        id="", arrived=0.0, shape=side, calls=steps, tokens=tokens, joins="dbcache", caller=caller, share=0.6
    )


def request_batching(jobs: Sequence[JobState], costs: CallCosts, rules: Rules, accounts: Accounts, now: float) -> Plan:
    """The plan of a gang that batches whole requests: equal jobs that wait at one moment run together to the end."""
    late = tuple(job.id for job in jobs if job.deadline < now)
    alive = sorted((job for job in jobs if job.id not in late), key=lambda job: (job.arrived, job.id))
    batch = [job for job in alive if not job.waiting]
    if not batch and alive:
        first = alive[0]
        equal = [job for job in alive if (job.shape, job.joins, job.calls) == (first.shape, first.joins, first.calls)]
        batch = equal[: rules.max_rows]
    if not batch:
        return Plan(abort=late)
    ids = tuple(job.id for job in batch)
    if batch[0].calls_left == 0:
        return Plan(abort=late, end=ids, seconds=sum(map(costs.end_s, batch)))
    start = tuple(job.id for job in batch if job.waiting)
    begin_s = sum(costs.start_s(job) for job in batch if job.waiting)
    return Plan(abort=late, start=start, calls=(ids,), seconds=begin_s + costs.call_s(batch))


@dataclass
class Outcome:
    """The result of one scheduling on the trace: seconds from arrival to answer, with and without deadlines."""

    name: str
    took_s: dict[str, float]
    in_time: float
    bars: _Bars


def run(name: str, planner: Planner, rules: Rules, jobs: Sequence[JobState], goal_s: float, seed: int) -> Outcome:
    """Run the trace twice: without deadlines for latencies, with them for the share done in time."""
    machine = Machine()
    costs, bars = taught(machine, jobs, random.Random(seed)), _Bars()

    def note(began: float, ended: float, tick: Plan) -> None:
        for job in {*tick.end, *(job for call in tick.calls for job in call)}:
            bars.setdefault(job, []).append((began, ended - began))

    free = simulated(jobs, costs, rules, 0.0, planner=planner, truth=machine, on_tick=note)
    due = [replace(job, deadline=job.arrived + goal_s) for job in jobs]
    bound = simulated(due, costs, rules, 0.0, planner=planner, truth=machine)
    in_time = statistics.fmean(_in_time(bound[job.id], job) for job in due)
    return Outcome(name, {job.id: free[job.id].end - job.arrived for job in jobs}, in_time, bars)


def _in_time(forecast: Forecast, job: JobState) -> bool:
    return forecast.drawn and forecast.end <= job.deadline


def row(outcome: Outcome, jobs: Sequence[JobState]) -> tuple[str, ...]:
    """The figures of one scheduling, as text."""
    machine, took = Machine(), list(outcome.took_s.values())
    by_caller = {
        caller: [outcome.took_s[job.id] / left_s(job, machine) for job in jobs if job.caller == caller]
        for caller in sorted({job.caller for job in jobs})
    }
    slower = [statistics.fmean(times) for times in by_caller.values()]
    fairness = sum(slower) ** 2 / (len(slower) * sum(each**2 for each in slower))
    figures = [
        f"{quantile(took, 0.5):.1f}",
        f"{quantile(took, 0.95):.1f}",
        f"{outcome.in_time:.0%}",
        f"{fairness:.2f}",
    ]
    return (outcome.name, *figures, *(f"{quantile(times, 0.95):.1f}" for times in by_caller.values()))


def draw(outcomes: Sequence[Outcome], jobs: Sequence[JobState], path: Path, until_s: float) -> None:
    """A timeline of each scheduling: one line per job from its arrival, thick while it runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [job for job in jobs if job.arrived < until_s]
    colours = {caller: f"C{i}" for i, caller in enumerate(sorted({job.caller for job in jobs}))}
    figure, axes = pyplot.subplots(len(outcomes), 1, figsize=(12, 4 * len(outcomes)), sharex=True, layout="tight")
    for axis, outcome in zip(axes, outcomes, strict=True):
        for line, job in enumerate(shown):
            took_s, colour = outcome.took_s[job.id], colours[job.caller]
            axis.broken_barh([(job.arrived, took_s)], (line + 0.4, 0.2), color=colour, alpha=0.3)
            axis.broken_barh(outcome.bars[job.id], (line, 0.9), color=colour)
        axis.set(title=outcome.name, ylabel="job", ylim=(len(shown), 0))
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    axes[0].legend(handles, colours, loc="upper right")
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(
    length: float = typer.Option(600.0, "--seconds", min=1, help="of arrivals"),
    load: float = typer.Option(0.9, min=0.01, help="arriving work, relative to running one job at a time"),
    goal: float = typer.Option(60.0, min=0.1, help="seconds within which a job must be answered"),
    max_rows: int = typer.Option(8, min=1, help="rows of a joined call"),
    seed: int = typer.Option(0),
    image: Path | None = typer.Option(None, help="plot the timeline into this file"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    jobs = trace(Machine(), length, load, random.Random(seed))
    ways: list[tuple[str, Planner, Rules]] = [
        ("first come first served", plan, Rules(scheduling="fifo")),
        ("request batching", request_batching, Rules(max_rows=max_rows)),
        ("step scheduler", plan, Rules(max_rows=max_rows)),
    ]
    outcomes = [run(*way, jobs, goal, seed) for way in ways]
    callers = sorted({job.caller for job in jobs})
    head = [
        "scheduling",
        "p50 s",
        "p95 s",
        f"in {goal:g} s",
        "fairness",
        *(f"{caller}: p95 x alone" for caller in callers),
    ]
    rows = [row(outcome, jobs) for outcome in outcomes]
    title = f"{len(jobs)} jobs in {length:g} s, load {load:g}, seed {seed}, cost model of 4 x L20 (simulated)"
    show_table(title, head, rows, out)
    if image is not None:
        draw(outcomes, jobs, image, until_s=length / 3)


if __name__ == "__main__":
    typer.run(main)
