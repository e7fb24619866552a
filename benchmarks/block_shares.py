"""``python -m benchmarks.block_shares``: what each block of the bundled model adds, and the image without it.

A model is a fair test of caches only if its blocks work: blocks that add hardly anything can be left out in every step.
So for each block this shows its share of all residuals, and the PSNR of the images that are generated without it; and
for as many blocks as each preset saves, the PSNR without those that are missed least, which the preset must beat.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.leaving_out import best_left_out, captions_to_choose_by, residual_shares, without
from benchmarks.places import doc_option, place, put_text
from benchmarks.report import Table
from cache_core.options import CacheOptions, NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import load
from raycache.presets import load_presets
from raycache.tune.measures import psnr
from raycache.tune.sweep import Job, draw

MARK = "<!-- block shares -->"


@dataclass(frozen=True)
class BlockRow:
    """One block.

    Attributes:
        index: its number, from 0.
        share: of the norms of all blocks' residuals of the image tokens (of all images together), mean over the steps.
        psnr: mean dB of the images without it to those with it.
    """

    index: int
    share: float
    psnr: float


def main(
    model: Annotated[str, typer.Option(help="Folder of a model trained on the demo world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 8,
    doc: bool = doc_option(),
) -> None:
    """Measure, print the table, draw the plot."""
    torch.set_grad_enabled(False)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    job = captions_to_choose_by(prompts)
    references, _, _ = draw(pipe, job, NoCacheOptions())
    console = Console(stderr=True)
    numbered = track(list(enumerate(residual_shares(pipe, job))), description="blocks", console=console)
    rows = [BlockRow(index, share, without(pipe, job, references, [index])) for index, share in numbered]
    presets = _presets(pipe, job, references) if model == "demo" else []
    saved = [len(rows) // 2, *(_fewer(share, rows) for _, share, _ in presets)]
    choices = best_left_out(pipe, job, references, max(saved))
    chosen = list(track(choices, total=max(saved), description="left out", console=console))
    table = Table("", ["block", "share of the residual", "PSNR without it, dB"], [_cells(row) for row in rows])
    table.show()
    text = "\n\n".join([_summary(rows, job, *chosen[saved[0] - 1]), *_beside(presets, rows, chosen)])
    print(text)
    put_text("quality.md", MARK, f"{text}\n\n{table.markdown()}", doc)
    draw_plot(rows, place("images/block_shares.png", doc))


def _cells(row: BlockRow) -> list[str]:
    return [str(row.index), f"{row.share:.1%}", f"{row.psnr:.1f}"]


def _fewer(share: float, rows: list[BlockRow]) -> int:
    """How many blocks may be left out so that no fewer than ``share`` of them are computed."""
    return int((1 - share) * len(rows))


def _summary(rows: list[BlockRow], job: Job, half: list[int], halved: float) -> str:
    even = 1 / len(rows)
    weakest = min(rows, key=lambda row: row.share)
    return (
        f"{len(job.prompts)} held-out captions, {job.steps} steps, {job.size}, no cache. An even share is {even:.1%}; "
        f"the smallest is {weakest.share:.2%} (block {weakest.index}), {weakest.share / even:.2f} of it. Without the "
        f"half of the blocks that is missed least ({', '.join(map(str, sorted(half)))}; chosen one after another) in "
        f"all steps: {halved:.1f} dB."
    )


def _presets(pipe: Any, job: Job, references: np.ndarray) -> list[tuple[str, float, float]]:
    """What the presets reach on the same images: name, share of the blocks, mean PSNR in dB."""
    found = []
    chosen: dict[Any, CacheOptions] = {**load_presets("demo").presets}
    for name, options in chosen.items():
        if options.type != "none":
            images, share, _ = draw(pipe, job, options)
            found.append((name, share, float(psnr(images, references).mean())))
    return found


def _beside(
    presets: list[tuple[str, float, float]], rows: list[BlockRow], chosen: list[tuple[list[int], float]]
) -> list[str]:
    """A sentence on each preset beside leaving blocks out; none for another model."""
    cells = []
    for name, share, reached in presets:
        count = _fewer(share, rows)
        rival = f"{chosen[count - 1][1]:.1f} dB without {count} blocks" if count else "no block to leave out"
        cells.append(f"`{name}` {share:.1%} of the blocks, {reached:.1f} dB ({rival})")
    if not cells:
        return []
    return [f"The presets on the same captions, and beside them as many blocks left out: {'; '.join(cells)}."]


def draw_plot(rows: list[BlockRow], path: Path) -> None:
    """Bars of each block's share, and the PSNR without it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True)
    indices = [row.index for row in rows]
    above.bar(indices, [100 * row.share for row in rows])
    above.axhline(10 / len(rows), color="grey", linestyle="--", label="a tenth of an even share")
    above.set_ylabel("share of the residual, %")
    above.legend(fontsize=8)
    below.bar(indices, [row.psnr for row in rows])
    below.set_ylabel("PSNR without it, dB")
    below.set_xlabel("block")
    below.set_xticks(indices[:: 1 + len(indices) // 30])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
