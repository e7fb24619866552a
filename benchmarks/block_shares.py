"""``python -m benchmarks.block_shares``: what each block of the bundled model adds, and the image without it.

A model is a fair test of caches only if its blocks work: blocks that add hardly anything can be left out in every step.
So for each block this shows its share of all residuals, and the PSNR of the images that are generated without it; and
for the half that is missed least, block by block, the PSNR without all of it, which each preset must beat.
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

from benchmarks.matched_rules import left_out
from benchmarks.places import doc_option, place, put_text
from benchmarks.quality_table import STEPS
from benchmarks.report import Table
from cache_core.blocks import find_blocks
from cache_core.options import CacheOptions, NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.presets import load_presets
from raycache.size import Size
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


def residual_shares(pipe: Any, job: Job) -> list[float]:
    """For each block, its share of what all blocks add to the image tokens; the shares add up to 1."""
    blocks = find_blocks(pipe.transformer)
    norms: list[list[float]] = [[] for _ in blocks]
    handles = []
    for block in blocks:

        def note(_module: Any, args: Any, kwargs: Any, output: Any, index: int = block.index) -> None:
            before = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            norms[index].append(float((output[1] - before).float().norm()))

        handles.append(block.module.register_forward_hook(note, with_kwargs=True))
    try:
        draw(pipe, job, NoCacheOptions())
    finally:
        for handle in handles:
            handle.remove()
    each_step = np.array(norms)
    return [float(share) for share in (each_step / each_step.sum(axis=0)).mean(axis=1)]


def without(pipe: Any, job: Job, references: np.ndarray, indices: list[int]) -> float:
    """Mean PSNR in dB of the images that are generated without these blocks."""
    with left_out(pipe.transformer, indices):
        return float(psnr(draw(pipe, job, NoCacheOptions())[0], references).mean())


def best_half(rows: list[BlockRow]) -> list[int]:
    """The half of the blocks without which, one by one, the images stay nearest."""
    order = sorted(rows, key=lambda row: -row.psnr)
    return sorted(row.index for row in order[: len(rows) // 2])


def main(
    model: Annotated[str, typer.Option(help="Folder of a model trained on the demo world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 8,
    doc: bool = doc_option(),
) -> None:
    """Measure, print the table, draw the plot."""
    torch.set_grad_enabled(False)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    job = Job(tuple(scene.caption for scene in held_out_scenes(prompts, seed=4)), STEPS, Size(128, 128), prompts)
    references, _, _ = draw(pipe, job, NoCacheOptions())
    shares = residual_shares(pipe, job)
    numbered = track(list(enumerate(shares)), description="blocks", console=Console(stderr=True))
    rows = [BlockRow(index, share, without(pipe, job, references, [index])) for index, share in numbered]
    half = best_half(rows)
    table = Table("", ["block", "share of the residual", "PSNR without it, dB"], [_cells(row) for row in rows])
    table.show()
    text = _summary(rows, job, half, without(pipe, job, references, half))
    if model == "demo":
        text += f"\n\n{_presets(pipe, job, references)}"
    print(text)
    put_text("quality.md", MARK, f"{text}\n\n{table.markdown()}", doc)
    draw_plot(rows, place("images/block_shares.png", doc))


def _cells(row: BlockRow) -> list[str]:
    return [str(row.index), f"{row.share:.1%}", f"{row.psnr:.1f}"]


def _summary(rows: list[BlockRow], job: Job, half: list[int], halved: float) -> str:
    even = 1 / len(rows)
    weakest = min(rows, key=lambda row: row.share)
    return (
        f"{len(job.prompts)} held-out captions, {job.steps} steps, {job.size}, no cache. An even share is {even:.1%}; "
        f"the smallest is {weakest.share:.2%} (block {weakest.index}), {weakest.share / even:.2f} of it. Without the "
        f"half of the blocks that is missed least ({', '.join(map(str, half))}) in all steps: {halved:.1f} dB."
    )


def _presets(pipe: Any, job: Job, references: np.ndarray) -> str:
    """What the presets reach on the same images."""
    cells = []
    chosen: dict[Any, CacheOptions] = {**load_presets("demo").presets}
    for name, options in chosen.items():
        if options.type != "none":
            images, share, _ = draw(pipe, job, options)
            cells.append(f"`{name}` {share:.1%} of the blocks, {psnr(images, references).mean():.1f} dB")
    return f"The presets on the same captions: {'; '.join(cells)}."


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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
