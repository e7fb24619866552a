"""Which jobs are decoded together: their rows are distributed over the ranks, so some cost no extra time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raycache.gang.deadlines import Deadlines
from raycache.gang.schedule import CallCosts, JobState, Rules

__all__ = ["ended_together", "spread_s"]

_SOON = 1e-9


def spread_s(jobs: Sequence[JobState], costs: CallCosts, decoders: int) -> float:
    """Seconds until all of them are decoded, with rows assigned to ranks in turn."""
    busy_s = [0.0] * decoders
    row = 0
    for job in jobs:
        row_s = costs.end_s(job) / math.ceil(job.rows / decoders)
        for _ in range(job.rows):
            busy_s[row % decoders] += row_s
            row += 1
    return max(busy_s)


def ended_together(
    first: JobState, others: Sequence[JobState], costs: CallCosts, rules: Rules, deadlines: Deadlines
) -> tuple[list[JobState], float]:
    """``first``, and those of ``others`` that otherwise idle ranks can decode meanwhile; and the seconds."""
    members, seconds = [first], costs.end_s(first)
    works = {first.id: seconds}
    for job in others:
        if job.waiting or job.calls_left:
            continue
        if spread_s([*members, job], costs, rules.decoders) > seconds + _SOON:
            continue
        with_it = {**works, job.id: costs.end_s(job)}
        if deadlines.allow(seconds, with_it) or not deadlines.allow(seconds, works):
            members.append(job)
            works = with_it
    return members, seconds
