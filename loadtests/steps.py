"""Runs with a changing rate: the outcomes of each step's requests, and the highest rate that held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.records import Record
from loadtests.summary import quantiles

__all__ = ["GOAL", "Level", "highest_held", "missed", "step_rows"]

#: Share of requests that must be answered with an image within the deadline, for a rate to hold.
GOAL = 0.95


@dataclass(frozen=True)
class Level:
    """A period with one rate.

    Attributes:
        start, end: seconds into the run.
        rate: intended requests per second.
        whole: whether it lasted as long as planned.
    """

    start: float
    end: float
    rate: float
    whole: bool = True


def missed(records: Iterable[Record], deadline: float) -> bool:
    """Whether more than 1 - :data:`GOAL` of the requests were late or got no image. Clients that left do not count."""
    judged = [record for record in records if record.outcome != "abandoned"]
    bad = sum(record.outcome != "done" or record.latency > deadline for record in judged)
    return bad > (1 - GOAL) * len(judged) + 1e-9


def step_rows(records: Sequence[Record], levels: Sequence[Level], deadline: float) -> list[dict[str, Any]]:
    """A row for each level, about the requests whose intended start is in it, whenever they ended.

    Returns:
        ``rate`` was intended, ``offered`` is the random actual rate, ``answered`` counts requests that ended with an
        image in the step; all are requests per second. ``waiting`` were in progress at its end. ``held`` is None if
        nothing can be said: there was no request, or the run ended before the step, with no more missed than the goal
        allows.
    """
    return [_row(records, level, deadline) for level in levels]


def _row(records: Sequence[Record], level: Level, deadline: float) -> dict[str, Any]:
    own = [record for record in records if level.start <= record.intended < level.end]
    done = [record for record in own if record.outcome == "done"]
    length = max(level.end - level.start, 1e-9)
    answered = sum(r.outcome == "done" and level.start <= r.ended < level.end for r in records)
    held: bool | None = not missed(own, deadline)
    if held and not (level.whole and any(record.outcome != "abandoned" for record in own)):
        held = None
    return {
        "start": round(level.start, 2),
        "seconds": round(length, 2),
        "rate": round(level.rate, 4),
        "requests": len(own),
        "offered": round(len(own) / length, 4),
        "answered": round(answered / length, 4),
        "late": sum(record.latency > deadline for record in done),
        "no_image": sum(record.outcome not in ("done", "abandoned") for record in own),
        "waiting": sum(record.intended < level.end <= record.ended for record in records),
        "latency": quantiles(record.latency for record in done),
        "queue": quantiles(record.queue for record in done),
        "held": held,
    }


def highest_held(rows: Sequence[dict[str, Any]]) -> float | None:
    """The rate of the last step that held before the first that did not; None if none held.

    A step that holds after one that did not is luck, or due to refused requests, and does not count.
    """
    best = None
    for row in rows:
        if row["held"] is False:
            break
        if row["held"]:
            best = row["rate"]
    return best
