"""Ticks for ranks without a gang: due jobs start, jobs share calls where allowed, finished jobs are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.tick import Called, Tick, TickReport


class Ticks(Protocol):
    def tick(self, tick: Tick) -> TickReport: ...


@dataclass
class Drawn:
    """One rank's results for some jobs; its outputs have the images that it decoded itself."""

    outputs: dict[str, JobOutput] = field(default_factory=dict)
    decoded: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    progress: dict[str, list[Progress]] = field(default_factory=dict)
    calls: list[Called] = field(default_factory=list)


def whole(ranks: Sequence[Drawn]) -> dict[str, JobOutput]:
    """Rank 0's outputs with the images of all ranks."""
    outputs = {}
    for id, output in ranks[0].outputs.items():
        rows = {row: image for drawn in ranks for row, image in drawn.decoded.get(id, {}).items()}
        outputs[id] = replace(output, images=np.stack([rows[row] for row in sorted(rows)])) if rows else output
    return outputs


def draw(
    rank: Ticks,
    jobs: Mapping[Job, int],
    *,
    abort: Mapping[str, int] | None = None,
    apart: bool = False,
    first: int = 0,
) -> Drawn:
    """Run ``jobs``, each from the tick in which it is due.

    Args:
        abort: the tick in which a job is dropped.
        apart: whether each job has its own calls.
        first: number of the first tick.
    """
    drawn, number = Drawn(), first
    active: dict[str, Job] = {}
    done: set[str] = set()
    abort = abort or {}
    waiting = dict(jobs)
    while waiting or active:
        at = number - first
        dropped = tuple(name for name in active if abort.get(name) == at)
        active = {name: job for name, job in active.items() if name not in dropped}
        start = tuple(job for job, due in waiting.items() if due <= at)
        waiting = {job: due for job, due in waiting.items() if job not in start}
        ends = tuple(name for name in active if name in done)
        active |= {job.id: job for job in start}
        parts: dict[Any, list[str]] = {}
        for name, job in active.items():
            if name not in done:
                parts.setdefault(name if apart else (job.size, job.cache.joins), []).append(name)
        report = rank.tick(Tick(number, number - 1, dropped, start, tuple(map(tuple, parts.values())), ends))
        number += 1
        drawn.outputs |= report.outputs
        drawn.decoded |= report.decoded
        drawn.failures += report.failures
        drawn.calls += report.calls
        for name, events in report.progress.items():
            drawn.progress.setdefault(name, []).extend(events)
        done |= set(report.done)
        over = {*ends, *(name for failure in report.failures for name in failure.jobs)}
        waiting |= {job: 0 for job in start if job.id not in over and job.id not in report.started_s}
        active = {name: job for name, job in active.items() if name not in over and job not in waiting}
    drawn.outputs = whole([drawn])
    return drawn
