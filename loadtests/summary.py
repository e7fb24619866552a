"""The numbers of a run, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from loadtests.records import Record

__all__ = ["agreement", "by_kind", "quantiles", "summarize"]


def quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """p50, p95, p99 and max, in the unit of ``values``; None if there are none."""
    ordered = np.fromiter(values, float)
    if not ordered.size:
        return None
    p50, p95, p99 = np.quantile(ordered, (0.5, 0.95, 0.99))
    numbers = {"p50": p50, "p95": p95, "p99": p99, "max": ordered.max()}
    return {name: round(float(value), 4) for name, value in numbers.items()}


def summarize(
    records: Sequence[Record], *, deadline: float, length: float, offering: float, engines: int, ranks: int
) -> dict[str, Any]:
    """The results of a run.

    Args:
        deadline: seconds within which an answer is good.
        length: seconds of the whole run, from its start to the last answer; rates are counts divided by it.
        offering: seconds in which requests were sent, by which the offered rate is computed.
        engines, ranks: number of gangs, and of ranks in all of them together (GPUs, if there are any).

    Returns:
        Shares are of all requests; times are in seconds. ``lost`` counts requests that were accepted and got no image,
        with an answer (5xx) or without one, although they were not aborted.
    """
    done = [record for record in records if record.outcome == "done"]
    counts = Counter(record.outcome for record in records)
    total = max(1, len(records))
    span = max(length, 1e-9)
    busy = sum(record.encode + record.denoise + record.decode for record in done)
    images = sum(record.images for record in done)
    good = sum(record.latency <= deadline for record in done)
    return {
        "requests": len(records),
        "seconds": round(span, 2),
        "offered": {"seconds": round(offering, 2), "per_second": round(len(records) / max(offering, 1e-9), 4)},
        "outcomes": {
            name: counts.get(name, 0) for name in ("done", "refused", "aborted", "failed", "abandoned", "wrong")
        },
        "causes": dict(Counter(f"{r.outcome}: {r.cause}" for r in records if r.cause)),
        "shares": {name: round(counts[name] / total, 4) for name in ("refused", "aborted", "abandoned")},
        "lost": sum(record.outcome == "failed" and not 400 <= record.status < 500 for record in records),
        "latency": quantiles(record.latency for record in done),
        "queue": quantiles(record.queue for record in done),
        "first_event": quantiles(r.first_event for r in done if r.first_event is not None),
        "first_preview": quantiles(r.first_preview for r in done if r.first_preview is not None),
        "late_client": quantiles(record.sent - record.intended for record in records),
        "goodput": _goodput(good, deadline, span, total),
        "images": {
            "count": images,
            "per_second": round(images / span, 4),
            "per_rank_per_minute": round(60 * images / span / max(1, ranks), 4),
        },
        "gang_busy": round(busy / span / max(1, engines), 4),
        "computed_blocks": round(float(np.mean([r.computed for r in done if r.computed is not None])), 4)
        if any(r.computed is not None for r in done)
        else None,
        "checked": {"decoded": sum(r.checked for r in records), "wrong": counts.get("wrong", 0)},
    }


def _goodput(good: int, deadline: float, span: float, total: int) -> dict[str, float]:
    return {"deadline": deadline, "good": good, "per_second": round(good / span, 4), "share": round(good / total, 4)}


def by_kind(records: Sequence[Record], kinds: Sequence[str], deadline: float) -> list[dict[str, Any]]:
    """A row for each kind of request sent, in the order of the mix.

    Args:
        kinds: names, by :attr:`Record.kind`.
    """
    rows = []
    for number, name in enumerate(kinds):
        own = [record for record in records if record.kind == number]
        if own:
            done = [record for record in own if record.outcome == "done"]
            rows.append(
                {
                    "kind": name,
                    "requests": len(own),
                    "done": len(done),
                    "in_time": sum(record.latency <= deadline for record in done),
                    "latency": quantiles(record.latency for record in done),
                    "queue": quantiles(record.queue for record in done),
                    "denoise": quantiles(record.denoise for record in done),
                }
            )
    return rows


def agreement(records: Sequence[Record], before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """This run's own numbers compared with the server's metrics.

    Args:
        before, after: results of :func:`loadtests.server.scrape` at the start and at the end.

    Returns:
        For each number: the client's, the server's, and the difference relative to the server's. A client that hung up
        does not know whether its image was still generated, so for those the server's count is used.
    """
    done = [record for record in records if record.outcome in ("done", "wrong")]
    ours = {
        "done": float(len(done)),
        "images": float(sum(record.images for record in done)),
        "queue_seconds": sum(record.queue for record in done),
        "denoise_seconds": sum(record.denoise for record in done),
    }
    rows = {}
    for name, own in ours.items():
        server = after.get(name, 0.0) - before.get(name, 0.0)
        off = abs(own - server) / server if server else float(own != server)
        rows[name] = {"client": round(own, 3), "server": round(server, 3), "off": round(off, 4)}
    return rows
