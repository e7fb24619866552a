"""``python -m benchmarks.matched``: rules for reuse at equal shares of computed blocks, in paired differences.

Every rule draws the same held-out captions from the same seeds at several settings. Between two settings the PSNR of
each image is interpolated in the share of blocks, so that all rules are read at the same shares, and each is compared
with one of them image by image. Stop it and run it again: what is drawn is kept in ``--work``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.matched_rules import WARMUP, points
from benchmarks.quality_table import STEPS
from benchmarks.report import Table
from cache_core.options import NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.size import Size
from raycache.tune.measures import psnr
from raycache.tune.sweep import Job, draw

MARK = "<!-- matched table -->"
SHARES = (0.55, 0.45, 0.40, 0.35)
BASE = "ForecastCache, 3 nodes"


@dataclass(frozen=True)
class Line:
    """One rule at one setting: ``psnr`` has an entry for each image."""

    rule: str
    setting: str
    share: float
    psnr: list[float]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model of the drawn world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 24,
    batch: Annotated[int, typer.Option(help="Images drawn at a time; cache-dit draws one.")] = 8,
    work: Annotated[Path, typer.Option(help="Folder for what is drawn.")] = Path("results/matched"),
    doc: Annotated[Path, typer.Option(help="Page whose table is replaced.")] = Path("docs/forecasting.md"),
    plot: Annotated[Path, typer.Option(help="Image to write.")] = Path("docs/images/matched.png"),
) -> None:
    """Measure, print the table, put it into the page and draw the plot."""
    torch.set_grad_enabled(False)
    work.mkdir(parents=True, exist_ok=True)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    lines = measured(pipe, prompts, batch, work / f"lines-{prompts}.jsonl")
    table = Table("", ["rule", *(f"{share:.0%} of blocks" for share in SHARES)], rows(lines))
    table.show()
    about = (
        f"{prompts} held-out captions, {STEPS} steps, {WARMUP} of them warm-up, 128x128, float32, F1B0. PSNR in dB to "
        f"the uncached image (a mean in which equal images count as 60), and in brackets by how much the rule is above "
        f"`{BASE}` on the same images, with one standard error. Interpolated between the two settings around the share."
    )
    if doc.exists() and (page := doc.read_text()).count(MARK) == 2:
        before, _, after = page.split(MARK)
        doc.write_text(f"{before}{MARK}\n\n{about}\n\n{table.markdown()}\n{MARK}{after}")
    draw_plot(lines, plot)


def measured(pipe: object, prompts: int, batch: int, file: Path) -> list[Line]:
    """All points, those that are known from ``file``."""
    scenes = held_out_scenes(prompts, seed=3)
    job = Job(tuple(scene.caption for scene in scenes), STEPS, Size(128, 128), batch)
    known = [Line(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    references, _, _ = draw(pipe, job, NoCacheOptions())
    for point in track(list(points(pipe)), description="rules", console=Console(stderr=True)):
        if not any((line.rule, line.setting) == (point.rule, point.setting) for line in known):
            pictures, share = point.drawn(pipe, job)
            each = [round(float(own), 3) for own in psnr(pictures, references)]
            known.append(Line(point.rule, point.setting, share, each))
            with file.open("a") as out:
                out.write(json.dumps(asdict(known[-1])) + "\n")
    return known


def at_share(lines: list[Line], rule: str, share: float) -> np.ndarray | None:
    """The PSNR of each image where the rule computes ``share``, between two settings; None outside of all."""
    own = sorted((line for line in lines if line.rule == rule), key=lambda line: line.share)
    known = [line.share for line in own]
    if not known or not known[0] <= share <= known[-1]:
        return None
    return np.array([np.interp(share, known, column) for column in zip(*(line.psnr for line in own), strict=True)])


def rows(lines: list[Line]) -> list[list[str]]:
    """A row for each rule, a cell for each share."""
    found = []
    for rule in dict.fromkeys(line.rule for line in lines):
        cells = [rule]
        for share in SHARES:
            own, base = at_share(lines, rule, share), at_share(lines, BASE, share)
            if own is None or base is None:
                cells.append("" if own is None else f"{own.mean():.1f}")
                continue
            gap = own - base
            error = gap.std(ddof=1) / len(gap) ** 0.5
            cells.append(f"{own.mean():.1f}" + (f" ({gap.mean():+.1f} ± {error:.1f})" if rule != BASE else ""))
        found.append(cells)
    return found


def draw_plot(lines: list[Line], path: Path) -> None:
    """PSNR over the share of blocks, a line for each rule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for rule in dict.fromkeys(line.rule for line in lines):
        own = sorted((line for line in lines if line.rule == rule), key=lambda line: line.share)
        style = "--" if "cache-dit" in rule else "-"
        shares, means = [100 * line.share for line in own], [float(np.mean(line.psnr)) for line in own]
        axes.plot(shares, means, style, marker="o", label=rule)
    axes.set_xlabel("blocks computed, %")
    axes.set_ylabel("PSNR to the uncached image, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
