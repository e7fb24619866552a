"""The rules' quality at equal shares of computed blocks: a table of paired differences, and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

MARK = "<!-- matched table -->"
SHARES = (0.55, 0.45, 0.40, 0.33)
BASE = "ForecastCache, 3 nodes, warm-up 2"
#: Rules without a forecast: they repeat what is reused, or reuse nothing.
REPEATING = frozenset(
    {
        "fewer steps, no cache",
        "the same blocks left out in all steps",
        *(f"diffusers {cache}" for cache in ("FirstBlockCache", "MagCache", "PAB", "FasterCache")),
    }
)


@dataclass(frozen=True)
class Line:
    """One rule at one setting: ``psnr`` has an entry for each image."""

    rule: str
    setting: str
    share: float
    psnr: list[float]


def at_share(lines: list[Line], rule: str, share: float) -> np.ndarray | None:
    """The PSNR of each image if the rule computes ``share``, interpolated between two settings; None outside them."""
    own = sorted((line for line in lines if line.rule == rule), key=lambda line: line.share)
    known = [line.share for line in own]
    if not known or not known[0] <= share <= known[-1]:
        return None
    return np.array([np.interp(share, known, column) for column in zip(*(line.psnr for line in own), strict=True)])


def rows(lines: list[Line]) -> list[list[str]]:
    """One row for each rule, one cell for each share."""
    found = []
    for rule in dict.fromkeys(line.rule for line in lines):
        cells = [rule]
        for share in SHARES:
            own, base = at_share(lines, rule, share), at_share(lines, BASE, share)
            if own is None or base is None:
                cells.append("" if own is None else f"{own.mean():.1f}")
                continue
            gap = own - base[: len(own)]
            error = gap.std(ddof=1) / len(gap) ** 0.5
            cells.append(f"{own.mean():.1f}" + (f" ({gap.mean():+.1f} ± {error:.1f})" if rule != BASE else ""))
        found.append(cells)
    return found


def draw_plot(lines: list[Line], path: Path) -> None:
    """Plot PSNR over the share of blocks: one colour for each rule, hollow without a forecast, peers' lines dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for index, rule in enumerate(dict.fromkeys(line.rule for line in lines)):
        own = sorted((line for line in lines if line.rule == rule), key=lambda line: line.share)
        style = "--" if rule.startswith(("cache-dit", "diffusers")) else "-"
        fill: Literal["none", "full"] = "none" if rule in REPEATING else "full"
        colour = pyplot.get_cmap("tab20")(index % 20)
        shares, means = [100 * line.share for line in own], [float(np.mean(line.psnr)) for line in own]
        axes.plot(shares, means, marker="o", label=rule, linestyle=style, color=colour, fillstyle=fill)
    axes.set_xlabel("blocks computed, %")
    axes.set_ylabel("PSNR to the uncached image, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
