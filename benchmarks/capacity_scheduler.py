"""The waiting formula compared with the engine's scheduler, in the scheduler's own simulator."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.report import quantile
from benchmarks.scheduling import Machine, job_of, taught
from benchmarks.waiting import wait_p95
from raycache.gang.schedule import JobState, Rules
from raycache.gang.scheduler import left_s
from raycache.gang.simulator import simulated

__all__ = ["KINDS", "compared"]

_JOBS = 3000
#: Pixels per side, steps, and weight among the others.
KINDS: Mapping[str, Sequence[tuple[int, int, int]]] = {
    "equal: 1024 x 1024, 28 steps": ((1024, 28, 1),),
    "mixed: 512 x 512 to 1024 x 1024, 4 to 50 steps": ((512, 4, 8), (512, 28, 3), (1024, 28, 2), (1024, 50, 2)),
}


def compared(name: str, kinds: Sequence[tuple[int, int, int]], load: float) -> Iterator[tuple[str, ...]]:
    """One row: the name, the load, the formula's p95 and those of three ways to schedule the same jobs."""
    machine, rng = Machine(), random.Random(0)
    jobs = [job_of(machine, side, steps, "one") for side, steps, _ in kinds]
    weights = [often for *_, often in kinds]
    each = [left_s(job, machine) for job, often in zip(jobs, weights, strict=True) for _ in range(often)]
    mean_s, at, arrivals = statistics.fmean(each), 0.0, list[JobState]()
    for number in range(_JOBS):
        at += rng.expovariate(load / mean_s)
        arrivals.append(replace(rng.choices(jobs, weights)[0], id=f"{number:05d}", arrived=at))
    stretched = _JOBS * mean_s / load / at  # so that the load is exact and not random
    arrivals = [replace(job, arrived=job.arrived * stretched) for job in arrivals]
    costs = taught(machine, arrivals, rng)
    cells = ["-"]
    if len(jobs) == 1:  # among mixed jobs, the 95 % longest waits are not those of the longest jobs
        cells = [f"{mean_s + wait_p95(load / mean_s, mean_s, 1):.1f}"]
    for rules in (Rules(scheduling="fifo"), Rules(max_rows=1), Rules()):
        done = simulated(arrivals, costs, rules, 0.0, truth=machine)
        cells.append(f"{quantile([done[job.id].end - job.arrived for job in arrivals], 0.95):.1f}")
    yield name, f"{load:.0%}", *cells
