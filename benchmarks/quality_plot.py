"""The quality benchmark as a plot: a colour for each method, hollow without a forecast, lines between shares."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.quality_table import OURS, PEER, SAME, STEPS, Row

__all__ = ["draw_plot", "method"]


def method(row: Row) -> str:
    """What a row's line in the plot is of: its setting without what varies along the line."""
    return re.sub(r" at \d+ %|, \d+ % pruned|, preset `\w+`", "", row.setting)


def draw_plot(rows: list[Row], path: Path) -> None:
    """Plot PSNR over the share of blocks computed.

    Without a forecast ours are hollow circles, and the peer's crosses; with a forecast ours are full circles. The
    peer's are compared with ours on the same captions, so those of ours are in the plot where there are any.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.setting != "uncached"]
    with_peer = {row.setting for row in shown if row.who == SAME}
    shown = [row for row in shown if not (row.who == OURS and row.setting in with_peer)]
    plain = dict.fromkeys(method(row).removesuffix(" + forecast") for row in shown)
    colours = {name: f"C{index}" for index, name in enumerate(plain)}
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for who, name in dict.fromkeys((row.who == PEER, method(row)) for row in shown):
        own = [row for row in shown if (row.who == PEER, method(row)) == (who, name)]
        own.sort(key=lambda row: row.share)
        base = name.removesuffix(" + forecast")
        forecasts = name != base or "preset" in own[0].setting  # presets are of methods that always forecast
        axes.plot(
            [row.share for row in own],
            [row.psnr for row in own],
            marker="x" if who else "o",
            linestyle=":" if who else "-",
            color=colours[base],
            fillstyle="full" if forecasts else "none",
            label=f"cache-dit, {name}" if who else name,
        )
    axes.set(xlabel="share of blocks computed", ylabel="PSNR to the uncached image, dB")
    axes.set_title(f"Quality against computation, bundled model, {STEPS} steps, 128x128")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
