"""The plots of a report, as SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtests.records import Record
from loadtests.series import over_time

__all__ = ["COLOURS", "figures"]

COLOURS = {
    "done": "tab:blue",
    "refused": "tab:orange",
    "aborted": "tab:purple",
    "failed": "tab:red",
    "abandoned": "tab:gray",
    "wrong": "black",
}

_OVER_TIME = (
    "The run over time. From the top: requests per second offered and answered; requests in progress, and how many of "
    "them waited in the server's queue; how long each took, at its intended start, with percentiles (dotted: the "
    "deadline); their outcomes."
)
_SHARES = (
    "The share of images (vertical) that were answered, or had left the queue, within a number of seconds (horizontal)."
)


def figures(records: Sequence[Record], results: dict[str, Any]) -> list[tuple[str, str]]:
    """Captions with their plots."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    tall, panels = plt.subplots(
        4, figsize=(9, 10.5), sharex=True, layout="constrained", gridspec_kw={"height_ratios": (2, 2, 3, 2)}
    )
    series = over_time(records, results["seconds"])
    _rates(panels[0], series, results)
    _queue(panels[1], series)
    _latency(panels[2], series, records, results)
    _outcomes(panels[3], series, records)
    panels[-1].set(xlabel="seconds into the run", xlim=(0, series["edges"][-1]))
    for axes in panels:
        _mark_faults(axes, results, named=axes is panels[0])
        _name_lines(axes)
    low, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    _shares(axes, records)
    return [(_OVER_TIME, _svg(tall)), (_SHARES, _svg(low))]


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    # The XML header and the doctype are not allowed inside HTML.
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)


def _name_lines(axes: Any) -> None:
    """Name the lines next to the panel, because inside it the names would cover them."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _mark_faults(axes: Any, results: dict[str, Any], named: bool) -> None:
    for number, fault in enumerate(results.get("faults", []), 1):
        axes.axvline(fault["at"], color="tab:red", linewidth=0.9)
        if named:
            axes.annotate(
                f"fault {number}", (fault["at"], 1.0), (0, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", color="tab:red", fontsize="small",
            )  # fmt: skip


def _rates(axes: Any, series: dict[str, Any], results: dict[str, Any]) -> None:
    axes.stairs(series["offered"], series["edges"], label="offered", color="tab:gray", fill=True, alpha=0.35)
    axes.stairs(series["answered"], series["edges"], label="answered", color="tab:blue", linewidth=1.6, baseline=None)
    steps = results.get("steps") or []
    if steps:
        ends = [steps[0]["start"], *(step["start"] + step["seconds"] for step in steps)]
        axes.stairs([step["rate"] for step in steps], ends, label="intended", color="black", baseline=None)
    axes.set(ylabel="requests per second", ylim=(0, None))


def _queue(axes: Any, series: dict[str, Any]) -> None:
    axes.step(series["times"], series["under_way"], where="post", label="in progress", color="tab:blue")
    axes.step(series["times"], series["queued"], where="post", label="in the queue", color="tab:orange")
    axes.set(ylabel="requests", ylim=(0, None))


def _latency(axes: Any, series: dict[str, Any], records: Sequence[Record], results: dict[str, Any]) -> None:
    for outcome, colour in COLOURS.items():
        points = [(r.intended, r.latency) for r in records if r.outcome == outcome]
        if points:
            axes.scatter(*zip(*points, strict=True), s=10, color=colour, alpha=0.6, label=f"one request, {outcome}")
    middles = (series["edges"][1:] + series["edges"][:-1]) / 2
    for name, style in (("p50", "-"), ("p95", "--")):
        known = ~np.isnan(series[name])
        if known.any():
            axes.plot(middles[known], series[name][known], style, color="black", linewidth=1.2, label=name)
    axes.axhline(results["goodput"]["deadline"], color="black", linestyle=":", linewidth=0.9, label="deadline")
    axes.set(ylabel="latency, seconds", ylim=(0, None))


def _outcomes(axes: Any, series: dict[str, Any], records: Sequence[Record]) -> None:
    edges = series["edges"]
    present = [outcome for outcome in COLOURS if any(r.outcome == outcome for r in records)]
    counts = [[r.intended for r in records if r.outcome == outcome] for outcome in present]
    if counts:
        axes.hist(counts, edges, stacked=True, color=[COLOURS[o] for o in present], label=present)
    axes.set(ylabel=f"requests in {edges[1]:.1f} s")


def _shares(axes: Any, records: Sequence[Record]) -> None:
    done = [record for record in records if record.outcome == "done"]
    for label, values in (("answered", [r.latency for r in done]), ("left the queue", [r.queue for r in done])):
        if values:
            axes.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), where="post", label=label)
    axes.set(xlabel="seconds", ylabel="share", ylim=(0, 1.02), xlim=(0, None))
    _name_lines(axes)
