"""``python -m benchmarks.quality``: what each cache setting costs in quality on the bundled model, ours and cache-dit.

Every setting generates the same held-out captions from the same seeds as the uncached model. Published thresholds were
found on FLUX.1-dev; here each threshold is the one that computes the named share of blocks. It can be stopped
and run again: finished rows are kept in ``--work``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers.models import FluxTransformer2DModel
from rich.console import Console
from rich.progress import track

from benchmarks.places import doc_option, place, put_text
from benchmarks.quality_plot import draw_plot
from benchmarks.quality_settings import Setting, settings
from benchmarks.quality_table import OURS, PEER, SAME, STEPS, Row, table
from benchmarks.workload import sharing_weights
from cache_core.blocks import find_blocks
from cache_core.options import NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.demo.judge import judge, shares
from raycache.size import Size
from raycache.tune.measures import feature_distance, psnr, ssim
from raycache.tune.sweep import Job, draw

MARK = "<!-- quality table -->"


Draw = Callable[[Job, float], tuple[np.ndarray, float, float]]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model trained on the demo world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 200,
    batch: Annotated[int, typer.Option(help="Images at a time with our settings; cache-dit takes one.")] = 8,
    peer_prompts: Annotated[int, typer.Option(help="Number of first captions that cache-dit generates.")] = 24,
    minutes: Annotated[float, typer.Option(help="Start no new row after this; run again to continue.")] = 1e9,
    work: Annotated[Path, typer.Option(help="Folder for finished rows.")] = Path("results/quality"),
    doc: bool = doc_option(),
) -> None:
    """Measure, print the table and draw the plot."""
    torch.set_grad_enabled(False)
    end = time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    known = Known(work / f"rows-{prompts}-{peer_prompts}.jsonl")
    bench = Bench(pipe, prompts, batch, known)
    bench.uncached(peer_prompts)
    chosen = sorted(settings(), key=lambda setting: (setting.preset is not None, setting.share is None))
    theirs = [setting for setting in chosen if setting.peer]
    for setting in track(chosen, description="ours", console=Console(stderr=True)):
        if time.monotonic() > end:
            break
        bench.ours(setting)
    for setting in track(theirs, description="cache-dit", console=Console(stderr=True)):
        mine = known.get(OURS, setting.name)
        if mine is None or time.monotonic() > end:
            break
        bench.beside_peer(setting, mine.threshold, peer_prompts)
    rows = known.rows
    text = table(rows, prompts, peer_prompts, batch)
    if missing := len(settings()) + 2 * len(theirs) + 2 - len(rows):
        text += f"\n{missing} rows are still to be measured.\n"
    print(text)
    put_text("quality.md", MARK, text, doc)
    draw_plot(rows, place("images/quality.png", doc))


class Known:
    """Finished rows by implementation and setting, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, who: str, setting: str) -> Row | None:
        return next((row for row in self.rows if (row.who, row.setting) == (who, setting)), None)

    def add(self, row: Row) -> None:
        if self.get(row.who, row.setting) is None:
            self.rows.append(row)
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


class Bench:
    """Measures settings on held-out captions of one model; finished rows are not measured again."""

    def __init__(self, pipe: Any, prompts: int, batch: int, known: Known) -> None:
        self._pipe, self._known = pipe, known
        self._scenes = held_out_scenes(prompts, seed=3)
        self._job = Job(tuple(scene.caption for scene in self._scenes), STEPS, Size(128, 128), batch)
        self._references, _, self._seconds = draw(pipe, self._job, NoCacheOptions())

    def uncached(self, peer_prompts: int) -> None:
        """The rows of the uncached references: of all captions, and of those that the peer generates."""
        verdicts = [judge(scene, image) for scene, image in zip(self._scenes, self._references, strict=True)]
        for who, own in ((OURS, verdicts), (SAME, verdicts[:peer_prompts])):
            accuracy = shares(own)["all_right"]
            self._known.add(Row(who, "uncached", 0.0, 1.0, 60.0, 1.0, 0.0, accuracy, self._seconds))

    def ours(self, setting: Setting) -> None:
        """All captions, with our cache."""
        if self._known.get(OURS, setting.name) is None:
            drawn = self._drawn(setting)
            if setting.share is not None:
                threshold = find_threshold(drawn, self._job, setting.share)
            elif setting.threshold is not None:
                threshold = setting.threshold
            else:
                raise ValueError(f"{setting.name} has neither a threshold nor a share of blocks")
            self._known.add(self._measured(drawn, self._job, setting, OURS, threshold))

    def beside_peer(self, setting: Setting, threshold: float, prompts: int) -> None:
        """The first captions with our cache at the same threshold as all captions, and with the peer's at the share of
        blocks that ours computes."""
        same = self._known.get(SAME, setting.name)
        few = replace(self._job, prompts=self._job.prompts[:prompts])
        if same is None:
            same = self._measured(self._drawn(setting), few, setting, SAME, threshold)
            self._known.add(same)
        if self._known.get(PEER, setting.name) is None:
            whole, alone = self._pipe.transformer, replace(few, batch=1)
            drawn = peer(self._pipe, whole, setting)
            threshold = find_threshold(drawn, alone, same.share)
            self._known.add(self._measured(drawn, alone, setting, PEER, threshold))
            self._pipe.transformer = whole

    def _drawn(self, setting: Setting) -> Draw:
        return lambda job, threshold: draw(self._pipe, job, setting.options(threshold))

    def _measured(self, drawn: Draw, job: Job, setting: Setting, who: str, threshold: float) -> Row:
        """Generate the job at a threshold, and score the images."""
        images, computed, seconds = drawn(job, threshold)
        count = len(images)
        references = self._references[:count]
        verdicts = [judge(scene, image) for scene, image in zip(self._scenes[:count], images, strict=True)]
        return Row(
            who,
            setting.name,
            round(threshold, 4),
            computed,
            float(psnr(images, references).mean()),
            float(ssim(images, references).mean()),
            float(feature_distance(self._pipe.vae, images, references).mean()),
            shares(verdicts)["all_right"],
            seconds,
        )


def find_threshold(drawn: Draw, job: Job, share: float, looks: int = 7, prompts: int = 8) -> float:
    """The threshold at which about ``share`` of the blocks are computed, by bisection on the first prompts.

    Ours and the peer's are searched with the same effort.
    """
    few = Job(job.prompts[:prompts], job.steps, job.size, job.batch)
    low, high = np.log(0.002), np.log(2.0)
    for _ in range(looks):
        middle = (low + high) / 2
        computed = drawn(few, float(np.exp(middle)))[1]
        if abs(computed - share) < 0.005:
            return float(np.exp(middle))
        low, high = (middle, high) if computed > share else (low, middle)
    return float(np.exp((low + high) / 2))


def peer(pipe: Any, whole: FluxTransformer2DModel, setting: Setting) -> Draw:
    """Generation with cache-dit at a setting's block counts, one image at a time: it decides once for a whole batch."""
    from benchmarks.quality_settings import cache_dit_on

    calls = [0]
    twin = sharing_weights(whole)
    for block in find_blocks(twin):
        block.module.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    refresh = cache_dit_on(twin, setting, STEPS)
    blocks = len(find_blocks(whole))

    def run(job: Job, threshold: float) -> tuple[np.ndarray, float, float]:
        pipe.transformer = twin
        calls[0] = 0
        images, seconds = refresh(threshold, job, pipe)
        return images, calls[0] / (blocks * job.steps * len(job.prompts)), seconds

    return run


if __name__ == "__main__":
    typer.run(main)
