"""Call costs that are simple sums, and minimal jobs for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raycache.gang.schedule import JobState

__all__ = ["PlainCosts", "plain_job"]


@dataclass
class PlainCosts:
    """A call costs ``fixed``, plus ``row`` times the tokens of each row."""

    fixed: float = 0.0
    row: float = 1.0
    start: float = 0.0
    end: float = 0.0
    limit: float = math.inf
    held: dict[str, float] = field(default_factory=dict)

    def call_s(self, jobs: Sequence[JobState]) -> float:
        return sum(self.row * job.rows * job.tokens for job in jobs) + self.fixed * jobs[0].tokens

    def start_s(self, job: JobState) -> float:
        return self.start

    def end_s(self, job: JobState) -> float:
        return self.end

    def bytes_of(self, job: JobState) -> float:
        return self.held.get(job.id, 1.0)

    def max_rows(self, job: JobState) -> float:
        return self.limit


def plain_job(name: str, calls: int, tokens: float = 1.0, arrived: float = 0.0, **more: Any) -> JobState:
    """A job that is described by its number of calls and its tokens."""
    return JobState(id=name, arrived=arrived, shape=tokens, calls=calls, tokens=tokens, **more)
