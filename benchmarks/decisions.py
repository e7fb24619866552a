"""Plots of the cache's decisions: the differences at each step, and which blocks were pruned when.

    python -m benchmarks.decisions [--model demo] [--doc | --out IMAGE.png]

Top: DBCache's difference at each step and its threshold; a filled mark is a step whose middle blocks were reused.
Bottom: DBPrune's differences by block and step; a hatched cell is a pruned block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.progress import track

from benchmarks.places import doc_option, place
from cache_core import CacheReport, DBCacheOptions, DBPruneOptions, cache_session
from cache_core.blocks import find_blocks
from cache_core.options import CacheOptions
from raycache.models.generating import generate_images
from raycache.models.loading import load_pipeline
from raycache.models.source import prepare_model
from raycache.settings import ModelSettings
from raycache.size import Size
from raycache.tune.candidates import outer_blocks

COLOURS = {True: "tab:green", False: "tab:red"}


def main(
    model: str = typer.Option("demo", help="demo, noise, a folder or a hub id"),
    prompt: str = typer.Option("a large red circle left of a small blue star on a gray background"),
    steps: int = typer.Option(28, help="denoising steps"),
    size: int = typer.Option(128, help="width and height, pixels"),
    dbcache_threshold: float = typer.Option(0.12),
    dbprune_threshold: float = typer.Option(0.08),
    out: Path | None = typer.Option(None, help="plot into this file"),
    doc: bool = doc_option(),
) -> None:
    """Draw the figure."""
    out = out or place("images/decisions.png", doc)
    settings = ModelSettings(path=model, dtype="float32")
    pipe = load_pipeline(settings, prepare_model(settings)[0], torch.device("cpu"))
    outer = outer_blocks(len(find_blocks(pipe.transformer)))
    shape: dict[str, Any] = {"Fn_compute_blocks": outer, "Bn_compute_blocks": outer}
    dual = DBCacheOptions(residual_diff_threshold=dbcache_threshold, **shape)
    prune = DBPruneOptions(residual_diff_threshold=dbprune_threshold, **shape)
    methods: tuple[CacheOptions, ...] = (dual, prune)
    reports = []
    for options in track(methods, description="drawing"):
        with cache_session(pipe.transformer, options) as report:
            generate_images(pipe, [prompt], [7], steps=steps, size=Size(size, size))
        reports.append(report)
    _figure(reports[0], reports[1], title=f"“{prompt}”, {Size(size, size)}, {steps} steps", out=out)
    typer.echo(f"{out}: DBCache {_share(reports[0])}, DBPrune {_share(reports[1])} of the blocks computed")


def _share(report: CacheReport) -> str:
    return f"{report.computed_block_fraction[0]:.0%}"


def _figure(dual: CacheReport, prune: CacheReport, title: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 8), sharex=True, gridspec_kw={"height_ratios": (1, 2)}, layout="constrained"
    )
    figure.suptitle(title)
    _dual_panel(top, dual)
    mesh = _prune_panel(bottom, prune)
    figure.colorbar(mesh, ax=bottom, label="relative L1 difference of the block's input")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _dual_panel(axes: Any, report: CacheReport) -> None:
    decisions = [record.images[0] for record in report.steps]
    for step, decision in enumerate(decisions):
        if decision.residual_diff is None:
            continue
        fill = "full" if decision.cached else "none"
        axes.plot(step, decision.residual_diff, "o", color=COLOURS[decision.cached], fillstyle=fill)
    axes.axhline(report.options["residual_diff_threshold"], linestyle="--", color="black", linewidth=1)
    axes.axvspan(-0.5, report.options["warmup_steps"] - 0.5, color="tab:gray", alpha=0.15)
    axes.set(ylabel="difference of the Fn residual", title=f"DBCache: {_share(report)} of the blocks computed")
    axes.set_ylim(bottom=0)
    for label, cached, fill in (("computed", False, "none"), ("reused", True, "full")):
        axes.plot([], [], "o", color=COLOURS[cached], fillstyle=fill, label=label)
    axes.plot([], [], "--", color="black", label="threshold")
    axes.legend(loc="upper left")


def _prune_panel(axes: Any, report: CacheReport) -> Any:
    from matplotlib.patches import Rectangle

    grid = np.full((report.num_blocks, len(report.steps)), np.nan)
    for column, record in enumerate(report.steps):
        for block, (difference, _) in record.images[0].differences.items():
            grid[block, column] = np.nan if difference is None else difference
    limit = 3 * report.options["residual_diff_threshold"]
    # Centred on whole steps, to match the marks of the panel above.
    edges = np.arange(len(report.steps) + 1) - 0.5
    mesh = axes.pcolormesh(edges, np.arange(report.num_blocks + 1), grid, cmap="viridis", vmin=0, vmax=limit)
    for column, record in enumerate(report.steps):
        for block in record.images[0].pruned_blocks:
            axes.add_patch(
                Rectangle((column - 0.5, block), 1, 1, fill=False, hatch="////", linewidth=0, edgecolor="white")
            )
    axes.set(xlabel="step", ylabel="block", title=f"DBPrune: {_share(report)} of the blocks computed")
    return mesh


if __name__ == "__main__":
    typer.run(main)
