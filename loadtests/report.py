"""One HTML page of a run, with plots, and nothing that must be fetched."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, select_autoescape

from loadtests.records import Record

__all__ = ["write_report"]

_COLOURS = {
    "done": "tab:blue",
    "refused": "tab:orange",
    "aborted": "tab:purple",
    "failed": "tab:red",
    "abandoned": "tab:gray",
    "wrong": "black",
}

_PAGE = Path(__file__).with_name("report.html.j2")

_ROWS = (
    ("latency, from the intended start", "latency"),
    ("in the server's queue", "queue"),
    ("first event of a stream", "first_event"),
    ("first preview of a stream", "first_preview"),
    ("this client was late by", "late_client"),
)


def write_report(path: Path, name: str, about: str, results: dict[str, Any], records: Sequence[Record]) -> None:
    """Write the page of ``results``: what ``summarize`` gave, with ``faults`` and ``agreement`` if there are any."""
    page = Environment(autoescape=select_autoescape(default=True)).from_string(_PAGE.read_text())
    path.write_text(
        page.render(name=name, about=about, results=results, rows=_ROWS, figures=_figures(records, results))
    )


def _figures(records: Sequence[Record], results: dict[str, Any]) -> list[tuple[str, str]]:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figures = []
    for caption, draw in (
        ("Each request where it was meant to start. Red lines are faults, dotted is the deadline.", _latency_over_time),
        ("Requests that were meant to start, by what became of them.", _outcomes_over_time),
        ("Share of pictures that came within so many seconds, and how long they had waited in the queue.", _shares),
    ):
        figure, axes = plt.subplots(figsize=(9, 3.4), layout="constrained")
        draw(axes, records, results)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        plt.close(figure)
        # The XML header and the doctype have no place inside HTML.
        figures.append((caption, re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)))
    return figures


def _latency_over_time(axes: Any, records: Sequence[Record], results: dict[str, Any]) -> None:
    for outcome, colour in _COLOURS.items():
        points = [(r.intended, r.latency) for r in records if r.outcome == outcome]
        if points:
            axes.scatter(*zip(*points, strict=True), s=12, color=colour, label=outcome)
    for fault in results.get("faults", []):
        axes.axvline(fault["at"], color="tab:red", linewidth=0.8)
    axes.axhline(results["goodput"]["deadline"], color="black", linestyle=":", linewidth=0.8)
    axes.set(xlabel="seconds into the run", ylabel="latency, s", ylim=(0, None))
    if records:
        axes.legend(fontsize="small")


def _outcomes_over_time(axes: Any, records: Sequence[Record], results: dict[str, Any]) -> None:
    end = max((record.intended for record in records), default=1.0)
    edges = np.linspace(0, max(end, 1.0), 31)
    present = [outcome for outcome in _COLOURS if any(r.outcome == outcome for r in records)]
    series = [[r.intended for r in records if r.outcome == outcome] for outcome in present]
    if series:
        axes.hist(series, edges, stacked=True, color=[_COLOURS[o] for o in present], label=present)
        axes.legend(fontsize="small")
    axes.set(xlabel="seconds into the run", ylabel=f"requests in {edges[1]:.1f} s")


def _shares(axes: Any, records: Sequence[Record], results: dict[str, Any]) -> None:
    done = [record for record in records if record.outcome == "done"]
    for label, values in (
        ("latency", [r.latency for r in done]),
        ("in the queue", [r.queue for r in done]),
    ):
        if values:
            axes.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), where="post", label=label)
    axes.set(xlabel="seconds", ylabel="share", ylim=(0, 1.02), xlim=(0, None))
    if done:
        axes.legend(loc="lower right", fontsize="small")
