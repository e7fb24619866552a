"""Rows of the quality benchmark, as a table and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import Table

STEPS = 28
COLUMNS = ["setting", "threshold", "blocks computed", "PSNR dB", "SSIM", "distance", "accuracy", "s per image"]
OURS, SAME, PEER = "raycache", "raycache, same captions", "cache-dit 1.5.3"
"""All captions with ours; the peer's captions with ours, at the same threshold; with the peer, at that share."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        who: :data:`OURS`, :data:`SAME` or :data:`PEER`.
        setting: its name.
        threshold: the one in effect.
        tuned: whether the threshold differs from the published one.
        share: share of blocks computed, 0 to 1.
        psnr: dB, mean.
        ssim: mean.
        distance: mean (see ``raycache.tune.measures.feature_distance``).
        accuracy: share of images in which the judge finds what the caption says (colour, shape, relation, background).
        seconds: per image.
    """

    who: str
    setting: str
    threshold: float
    tuned: bool
    share: float
    psnr: float
    ssim: float
    distance: float
    accuracy: float
    seconds: float


def table(rows: list[Row], prompts: int, peer_prompts: int, batch: int) -> str:
    """The rows as Markdown, ours before the peer's row of the same setting."""
    about = (
        f"{prompts} held-out captions (cache-dit, and ours in the row above it: the first {peer_prompts}), "
        f"{STEPS} steps, 128x128, float32. "
        f"Seconds are of the processor, {torch.get_num_threads()} thread(s); ours generates {batch} images at a "
        "time, cache-dit one at a time, so they compare only within one of the two."
    )
    lines = []
    order = {row.setting: index for index, row in reversed(list(enumerate(rows)))}
    for row in sorted(rows, key=lambda row: (order[row.setting], (OURS, SAME, PEER).index(row.who))):
        named = {
            OURS: row.setting,
            SAME: f"&nbsp;&nbsp;the first {peer_prompts}",
            PEER: f"&nbsp;&nbsp;{PEER}, same share",
        }
        threshold = "" if row.setting == "uncached" else f"{row.threshold:g}{' (re-tuned)' if row.tuned else ''}"
        quality = [f"{row.psnr:.1f}", f"{row.ssim:.4f}", f"{row.distance:.4f}", f"{row.accuracy:.1%}"]
        seconds = f"{row.seconds:.2f}" if row.seconds else "-"
        lines.append([named[row.who], threshold, f"{row.share:.1%}", *quality, seconds])
    return f"{about}\n\n{Table('', COLUMNS, lines).markdown()}"


def _kind(row: Row) -> str:
    """The part of a plot's label that distinguishes a row's group among those with the same ``who``."""
    if row.who != OURS:
        return ""
    return "forecast" if "forecast" in row.setting else "presets" if "preset" in row.setting else "ours"


def draw_plot(rows: list[Row], path: Path) -> None:
    """Plot quality over the share of blocks computed, for ours and the peer's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    groups = (
        (OURS, "ours", ".", "C0"),
        (SAME, "ours, the captions that cache-dit generated", "o", "C0"),
        (PEER, PEER, "x", "C3"),
        (OURS, "ours, forecast", "s", "C2"),
        (OURS, "ours, presets", "D", "C1"),
    )
    for who, label, marker, colour in groups:
        chosen = [row for row in rows if row.who == who and row.setting != "uncached" and label.endswith(_kind(row))]
        axes.scatter([row.share for row in chosen], [row.psnr for row in chosen], marker=marker, c=colour, label=label)
    axes.set(xlabel="share of blocks computed", ylabel="PSNR to the uncached image, dB")
    axes.set_title("Quality against computation, bundled model, 28 steps, 128x128")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
