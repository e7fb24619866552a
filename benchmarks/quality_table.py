"""Rows of the quality benchmark, as a table."""

from __future__ import annotations

from dataclasses import dataclass

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
        threshold: searched, but for presets; a speed-up for BudgetCache.
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
        threshold = "" if row.setting == "uncached" else f"{row.threshold:g}"
        quality = [f"{row.psnr:.1f}", f"{row.ssim:.4f}", f"{row.distance:.4f}", f"{row.accuracy:.1%}"]
        seconds = f"{row.seconds:.2f}" if row.seconds else "-"
        lines.append([named[row.who], threshold, f"{row.share:.1%}", *quality, seconds])
    return f"{about}\n\n{Table('', COLUMNS, lines).markdown()}"
