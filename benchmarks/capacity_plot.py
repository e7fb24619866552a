"""The plot of docs/capacity.md: published against predicted seconds, and seconds against PSNR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.capacity_model import predicted
from benchmarks.published import ROWS
from benchmarks.settings_under import CACHES, KERNELS, psnr, span

__all__ = ["draw"]


def draw(path: Path, goal_s: float, within: float) -> None:
    """Draw two panels into ``path``: how accurate the model is, and its predictions for four L20s."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    _trust(left, within)
    _choices(right, goal_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _trust(axes: Any, within: float) -> None:
    ends = [2.5, 30.0]
    axes.plot(ends, ends, color="0.6", lw=1)
    band = ([end * (1 - within) for end in ends], [end * (1 + within) for end in ends])
    axes.fill_between(ends, *band, color="0.93", label=f"within {within:.0%}")
    kinds = {
        "fitted": [row for row in ROWS if row.fitted],
        "held out, 1 GPU": [row for row in ROWS if not row.fitted and row.ranks == 1],
        "held out, 2 GPUs": [row for row in ROWS if not row.fitted and row.ranks == 2],
        "held out, 4 GPUs": [row for row in ROWS if not row.fitted and row.ranks == 4],
    }
    for (name, rows), marker in zip(kinds.items(), "oxs^", strict=True):
        open_marks = {"facecolors": "none", "edgecolors": "0.4"} if name == "fitted" else {}
        axes.scatter(
            [row.published_s for row in rows],
            [predicted(row) for row in rows],
            s=32,
            marker=marker,
            label=name,
            **open_marks,
        )
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    ticks = [3, 4, 6, 8, 12, 16, 24]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=map(str, ticks))
        axis.set_ticks([], minor=True)
    axes.set(xlabel="published seconds", ylabel="seconds, model", title="FLUX.1-dev 1024 x 1024 on L20")
    axes.legend()


def _choices(axes: Any, goal_s: float) -> None:
    cached = [(cache, psnr(cache.share)) for cache in CACHES if cache.cached_steps]
    shown = [(cache, decibels) for cache, decibels in cached if decibels is not None]
    for shift, kernels in enumerate(KERNELS):
        spans = [span(kernels, cache, 4) for cache, _ in shown]
        axes.errorbar(
            [decibels + 0.06 * (shift - 1) for _, decibels in shown],
            [one.seconds for one in spans],
            yerr=[[one.seconds - one.least for one in spans], [one.most - one.seconds for one in spans]],
            fmt="o-",
            capsize=4,
            label=kernels.name,
        )
    for cache, decibels in shown:
        axes.annotate(cache.name.split()[-1], (decibels, 2.05), ha="center", fontsize=9)
    axes.axhline(goal_s, color="0.3", ls="--", lw=1, label=f"{goal_s:.2f} s, published")
    axes.set(ylim=(2, None), xlabel="PSNR in dB to the uncached image (published at 50 steps)")
    axes.set(ylabel="seconds, model", title="Four L20s, 28 steps, FBCache with these thresholds")
    axes.legend()
