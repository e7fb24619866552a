"""A plot of which jobs were in which transformer call: one line per job, one bar per call, joined calls linked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raycache.protocol.tick import TickReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bar", "Line", "bars_of", "draw"]

_HEIGHT = 0.72
#: Colours of phases other than calls; callers have other colours.
_PHASES = {"encode": "0.75", "decode": "0.35"}


@dataclass(frozen=True)
class Line:
    """A job; seconds on the same clock as the bars."""

    job: str
    label: str
    caller: str
    arrived: float
    ended: float


@dataclass(frozen=True)
class Bar:
    """A period in which a job was running.

    Attributes:
        share: share of the blocks that it computed.
        members: all jobs of the call, including this one.
    """

    job: str
    begin: float
    seconds: float
    phase: Literal["encode", "call", "decode"]
    share: float = 1.0
    members: tuple[str, ...] = ()

    @property
    def joined(self) -> bool:
        """Whether the call had other jobs."""
        return len(self.members) > 1


def bars_of(ticks: Sequence[tuple[float, TickReport]]) -> list[Bar]:
    """What the ranks did when, from the ticks' reports and the times of their arrival.

    A tick's parts follow each other without gaps until its report: encoding, calls, decoding.
    """
    bars = []
    for came, report in ticks:
        parts: list[list[Bar]] = [[Bar(id, 0, seconds, "encode")] for id, seconds in report.started_s.items()]
        for call in report.calls:
            members = zip(call.jobs, call.shares, strict=True)
            parts.append([Bar(id, 0, call.seconds, "call", share, call.jobs) for id, share in members])
        parts += [[Bar(id, 0, output.decode_s, "decode")] for id, output in report.outputs.items()]
        begin = came - sum(part[0].seconds for part in parts)
        for part in parts:
            bars += [Bar(bar.job, begin, bar.seconds, bar.phase, bar.share, bar.members) for bar in part]
            begin += part[0].seconds
    return bars


def draw(lines: Sequence[Line], bars: Sequence[Bar], path: Path, title: str) -> None:
    """Write the plot; times count from the first arrival.

    Raises:
        ValueError: there is no job, or a bar belongs to a job without a line.
    """
    if not lines:
        raise ValueError("a timeline needs at least one job")
    places = {line.job: place for place, line in enumerate(sorted(lines, key=lambda line: line.arrived))}
    if strangers := {bar.job for bar in bars} - places.keys():
        raise ValueError(f"these jobs have bars but no line: {sorted(strangers)}")
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    zero = min(line.arrived for line in lines)
    colours = {caller: f"C{number}" for number, caller in enumerate(sorted({line.caller for line in lines}))}
    figure, axes = plt.subplots(figsize=(13, 1.6 + 0.5 * len(lines)), layout="constrained")
    for line in lines:
        place, colour = places[line.job], colours[line.caller]
        axes.plot([line.arrived - zero, line.ended - zero], [place, place], color=colour, linewidth=1, zorder=1)
        axes.plot(line.arrived - zero, place, ">", color="black", markersize=6, zorder=5)
        axes.plot(line.ended - zero, place, "D", color="black", markersize=4, zorder=5)
    callers = {line.job: line.caller for line in lines}
    for bar in bars:
        _bar(axes, bar, places, zero, colours[callers[bar.job]])
    ordered = sorted(lines, key=lambda line: line.arrived)
    axes.set(xlabel="seconds", title=title, ylim=(len(lines) - 0.4, -0.6))
    axes.set_yticks(range(len(lines)), [line.label for line in ordered], fontsize=8)
    axes.margins(x=0.01)
    _legend(axes, colours)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bar(axes: Axes, bar: Bar, places: dict[str, int], zero: float, colour: str) -> None:
    place, begin = places[bar.job], bar.begin - zero
    face = colour if bar.phase == "call" else _PHASES[bar.phase]
    # Reuse is light: the opacity follows the share of blocks that the call computes.
    alpha = 0.2 + 0.8 * bar.share if bar.phase == "call" else 1.0
    axes.barh(place, bar.seconds, _HEIGHT, left=begin, color=face, alpha=alpha, linewidth=0, zorder=2)
    edge, width = ("black", 0.9) if bar.joined else ("white", 0.5)
    axes.barh(place, bar.seconds, _HEIGHT, left=begin, fill=False, edgecolor=edge, linewidth=width, zorder=3)
    rows = [places[job] for job in bar.members]
    if bar.joined and place == min(rows):
        middle = begin + bar.seconds / 2
        axes.plot([middle] * len(rows), sorted(rows), "-o", color="black", linewidth=0.6, markersize=1.8, zorder=4)


def _legend(axes: Axes, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Patch | Line2D] = [Patch(color=colour, label=f"calls of {who}") for who, colour in colours.items()]
    marks += [Patch(color=colour, label=phase) for phase, colour in _PHASES.items()]
    some = statistics.fmean((0.2, 1.0))
    marks += [
        Patch(facecolor="tab:gray", alpha=some / 2, label="lighter: blocks reused"),
        Patch(fill=False, edgecolor="black", label="outlined and linked: one joined call"),
        Line2D([], [], marker=">", linestyle="", color="black", label="arrives"),
        Line2D([], [], marker="D", linestyle="", color="black", markersize=4, label="answered"),
    ]
    axes.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(marks), fontsize=8)
