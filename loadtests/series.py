"""A run over time: requests offered, answered and waiting, and percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtests.records import Record

__all__ = ["over_time"]

#: Parts of a run; each is at least a second long.
_BINS = 24


def over_time(records: Sequence[Record], length: float) -> dict[str, Any]:
    """Numbers for equal parts of the run.

    Args:
        length: seconds of the whole run.

    Returns:
        ``edges`` of the N parts, N + 1 seconds; ``offered`` and ``answered`` (with an image) per second, by intended
        start and by end, [N]; ``p50``, ``p95`` of the latency of requests whose intended start is in the part and that
        got an image, [N], NaN if there are none; ``times`` with the number of requests ``under_way``, and ``queued`` in
        the server by its own report (known only for requests with an image), all [M].
    """
    length = max(length, 1.0)
    edges = np.linspace(0.0, length, max(1, min(_BINS, int(length))) + 1)
    width = edges[1]
    done = [record for record in records if record.outcome == "done"]
    starts = np.array([record.intended for record in done])
    latencies = np.array([record.latency for record in done])
    part = np.digitize(starts, edges[1:-1])
    spread = np.full((len(edges) - 1, 2), np.nan)
    for number in set(part.tolist()):
        spread[number] = np.quantile(latencies[part == number], (0.5, 0.95))
    times = np.linspace(0.0, length, 20 * (len(edges) - 1) + 1)
    return {
        "edges": edges,
        "offered": np.histogram([record.intended for record in records], edges)[0] / width,
        "answered": np.histogram([record.ended for record in done], edges)[0] / width,
        "p50": spread[:, 0],
        "p95": spread[:, 1],
        "times": times,
        "under_way": _inside(times, [(record.intended, record.ended) for record in records]),
        "queued": _inside(times, [(record.sent, record.sent + record.queue) for record in done]),
    }


def _inside(times: np.ndarray, spans: Sequence[tuple[float, float]]) -> np.ndarray:
    """How many of the half-open spans contain each time, [M]."""
    begun, over = (np.sort([span[side] for span in spans]) for side in (0, 1))
    return np.asarray(np.searchsorted(begun, times, side="right") - np.searchsorted(over, times, side="right"))
