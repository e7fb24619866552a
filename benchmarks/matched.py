"""``python -m benchmarks.matched``: rules for reuse at equal shares of computed blocks, in paired differences.

Every rule generates the same held-out captions from the same seeds at several settings. Between two settings the PSNR
of each image is interpolated in the share of blocks, so that all rules are read at the same shares, and each is
compared with a base rule image by image. It can be stopped and run again: results are kept in ``--work``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.matched_rules import FEW, WARMUP, points
from benchmarks.matched_table import BASE, MARK, SHARES, Line, draw_plot, rows
from benchmarks.places import doc_option, place, put_text
from benchmarks.quality_table import STEPS
from benchmarks.report import Table
from cache_core.options import NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.size import Size
from raycache.tune.measures import psnr
from raycache.tune.sweep import Job, draw


def main(
    model: Annotated[str, typer.Option(help="Folder of a model trained on the demo world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 24,
    batch: Annotated[int, typer.Option(help="Images generated at a time; cache-dit generates one.")] = 8,
    work: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results/matched"),
    doc: bool = doc_option(),
) -> None:
    """Measure, print the table and draw the plot."""
    torch.set_grad_enabled(False)
    work.mkdir(parents=True, exist_ok=True)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    lines = measured(pipe, prompts, batch, work / f"lines-{prompts}.jsonl")
    table = Table("", ["rule", *(f"{share:.0%} of blocks" for share in SHARES)], rows(lines))
    table.show()
    about = (
        f"{prompts} held-out captions (diffusers' caches: the first {FEW}), {STEPS} steps, {WARMUP} of them warm-up "
        "where no other number is named, 128x128, float32, F1B0. PSNR in dB to the uncached image (a mean in "
        f"which equal images count as 60), and in brackets by how much the rule is above `{BASE}` on the same "
        "images, with one standard error. Interpolated between the two settings around the share."
    )
    put_text("forecasting.md", MARK, f"{about}\n\n{table.markdown()}", doc)
    draw_plot(lines, place("images/matched.png", doc))


def measured(pipe: object, prompts: int, batch: int, file: Path) -> list[Line]:
    """All points; known ones are read from ``file``."""
    scenes = held_out_scenes(prompts, seed=3)
    job = Job(tuple(scene.caption for scene in scenes), STEPS, Size(128, 128), batch)
    known = [Line(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    references, _, _ = draw(pipe, job, NoCacheOptions())
    for point in track(list(points(pipe)), description="rules", console=Console(stderr=True)):
        if not any((line.rule, line.setting) == (point.rule, point.setting) for line in known):
            images, share = point.drawn(pipe, replace(job, prompts=job.prompts[: point.captions]))
            each = [round(float(own), 3) for own in psnr(images, references[: len(images)])]
            known.append(Line(point.rule, point.setting, share, each))
            with file.open("a") as out:
                out.write(json.dumps(asdict(known[-1])) + "\n")
    return known


if __name__ == "__main__":
    typer.run(main)
