"""The plots of the report; a section without figures has no plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.recorder import Cell, Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_all"]

Rows = list[dict[str, Cell]]


def draw_all(found: Mapping[str, Found], out: Path) -> dict[str, list[str]]:
    """Write the plots of all sections into ``out``.

    Returns:
        File names, by section.
    """
    written: dict[str, list[str]] = {}
    for section, table, draw in _PLOTS:
        rows = found[section].tables.get(table, []) if section in found else []
        if rows:
            _save(out / f"{section}.png", table, rows, draw)
            written[section] = [f"{section}.png"]
    return written


def _save(path: Path, title: str, rows: Rows, draw: Callable[[Axes, Rows], None]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    draw(axes, rows)
    axes.set_title(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _groups(rows: Rows, *names: str) -> dict[str, Rows]:
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row[name]) for name in names), []).append(row)
    return groups


def _number(cell: Cell) -> float:
    return float(cell or 0)


def _images(axes: Axes, rows: Rows) -> None:
    """Bars grouped by build, with a colour for each method."""
    builds, methods = list(_groups(rows, "build")), _groups(rows, "method")
    width = 0.8 / len(methods)
    for number, (method, own) in enumerate(methods.items()):
        places = [builds.index(str(row["build"])) + (number - (len(methods) - 1) / 2) * width for row in own]
        axes.bar(places, [_number(row["s per image"]) for row in own], width, label=method)
        for place, row in zip(places, own, strict=True):
            share = f"{_number(row['blocks computed']):.0%}"
            axes.annotate(share, (place, _number(row["s per image"])), ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(builds)), builds)
    axes.set(ylabel="seconds per image (above: blocks computed)")
    axes.legend()


def _ranks(axes: Axes, rows: Rows) -> None:
    for label, own in _groups(rows, "build", "method").items():
        axes.plot(
            [_number(row["ranks"]) for row in own], [_number(row["s per image"]) for row in own], "o-", label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="ranks", ylabel="seconds per image")
    axes.legend(fontsize=7)


def _efficiency(axes: Axes, rows: Rows) -> None:
    names = [str(row["method"]) for row in rows]
    places = range(len(rows))
    axes.barh(places, [_number(row["efficiency"]) for row in rows])
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="measured / ideal speed-up")


def _decisions(axes: Axes, rows: Rows) -> None:
    places = range(len(rows))
    axes.barh(places, [_number(row["µs each"]) for row in rows])
    axes.set_yticks(places, [str(row["what"]) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="microseconds each")


def _decoding(axes: Axes, rows: Rows) -> None:
    places = range(len(rows))
    axes.bar(places, [_number(row["s"]) for row in rows])
    axes.set_xticks(places, [f"{row['image']}\n{row['way']}" for row in rows], fontsize=8)
    axes.set(ylabel="seconds")


def _links(axes: Axes, rows: Rows) -> None:
    for label, own in _groups([row for row in rows if row["all-to-all"] == "-"], "ranks").items():
        sizes, times = [_number(row["KiB per rank"]) for row in own], [_number(row["µs"]) for row in own]
        axes.loglog(sizes, times, "o-", label=f"{label} ranks")
    axes.set(xlabel="KiB per rank", ylabel="microseconds")
    axes.legend()


def _rebuild(axes: Axes, rows: Rows) -> None:
    others = {"gang", "first start, s", "total, s", "image before, s", "image after, s"}
    stages = [column for column in rows[0] if column not in others]  # in order, starting at the kill
    for place, row in enumerate(rows):
        left = 0.0
        for number, stage in enumerate(stages):
            seconds = _number(row.get(stage))
            axes.barh(place, seconds, left=left, color=f"C{number}", label=stage if place == 0 else None)
            left += seconds
    axes.set_yticks(range(len(rows)), [str(row["gang"]) for row in rows])
    axes.set(xlabel="seconds since the rank was killed")
    axes.legend(fontsize=8)


_PLOTS: tuple[tuple[str, str, Callable[[Any, Rows], None]], ...] = (
    ("images", "Images on one GPU", _images),
    ("ranks", "Images over ranks", _ranks),
    ("efficiency", "Efficiency", _efficiency),
    ("decisions", "Cost per decision", _decisions),
    ("decoding", "Decoding", _decoding),
    ("links", "All-to-alls by size", _links),
    ("rebuild", "Rebuild of a gang", _rebuild),
)
