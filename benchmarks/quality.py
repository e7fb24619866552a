"""``python -m benchmarks.quality``: what each cache setting costs in quality on the bundled model, ours and cache-dit.

Every setting draws the same held-out captions from the same seeds as the uncached model. Published thresholds were
found on FLUX.1-dev; a "re-tuned" threshold is the one that computes the named share of blocks here. Stop it and run it
again: rows that are known are kept in ``--work``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.quality_settings import Setting, settings
from benchmarks.workload import sharing_weights
from cache_core.blocks import find_blocks
from cache_core.options import NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.demo.judge import judge, shares
from raycache.demo.world import Scene
from raycache.tune.measures import feature_distance, psnr, ssim
from raycache.tune.sweep import Job, draw

STEPS = 28
MARK = "<!-- quality table -->"
OURS, SAME, PEER = "raycache", "raycache, same captions", "cache-dit 1.5.3"
"""All captions with ours; those that the peer draws with ours, at the same threshold; with the peer, at that share."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        who: :data:`OURS`, :data:`SAME` or :data:`PEER`.
        setting: name.
        threshold: in force.
        tuned: the threshold is not the published one.
        share: of blocks computed, 0 to 1.
        psnr: dB, mean.
        ssim: mean.
        distance: mean (see ``raycache.tune.measures.feature_distance``).
        accuracy: share of images that the judge reads as asked (colour, shape, relation, background).
        seconds: an image.
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


Draw = Callable[[Job, float], tuple[np.ndarray, float, float]]


def main(
    model: Annotated[str, typer.Option(help="Folder of a model of the drawn world, or `demo`.")] = "demo",
    prompts: Annotated[int, typer.Option(help="Held-out captions.")] = 200,
    batch: Annotated[int, typer.Option(help="Images our settings draw at a time; cache-dit draws one.")] = 8,
    peer_prompts: Annotated[int, typer.Option(help="Captions that cache-dit draws, the first of them.")] = 24,
    minutes: Annotated[float, typer.Option(help="Begin no new row after that; run again to go on.")] = 1e9,
    work: Annotated[Path, typer.Option(help="Folder for known rows.")] = Path("results/quality"),
    doc: Annotated[Path, typer.Option(help="Page whose table is replaced.")] = Path("docs/quality.md"),
    plot: Annotated[Path, typer.Option(help="Image to write.")] = Path("docs/images/quality.png"),
) -> None:
    """Measure, print the table, put it into the page and draw the plot."""
    torch.set_grad_enabled(False)
    end = time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    pipe = load(str(demo_model_path()) if model == "demo" else model)
    scenes = held_out_scenes(prompts, seed=3)
    job = Job(tuple(scene.caption for scene in scenes), STEPS, 128, 128, batch)
    known = Known(work / f"rows-{prompts}-{peer_prompts}.jsonl")
    references, _, seconds = draw(pipe, job, NoCacheOptions())
    accuracy = shares([judge(scene, picture) for scene, picture in zip(scenes, references, strict=True)])["all_right"]
    known.add(Row(OURS, "uncached", 0.0, False, 1.0, 60.0, 1.0, 0.0, accuracy, seconds))
    first = [judge(scene, picture) for scene, picture in zip(scenes, references[:peer_prompts], strict=False)]
    known.add(Row(SAME, "uncached", 0.0, False, 1.0, 60.0, 1.0, 0.0, shares(first)["all_right"], seconds))
    chosen = sorted(settings(), key=lambda setting: (setting.preset is not None, setting.share is None))
    for setting in track(chosen, description="ours", console=Console(stderr=True)):
        if time.monotonic() > end:
            break
        drawn = lambda job, threshold, options=setting.options: draw(pipe, job, options(threshold))  # noqa: E731
        row = known.get(OURS, setting.name)
        if row is None:
            threshold = setting.threshold if setting.share is None else find_threshold(drawn, job, setting.share)
            row = measure(pipe, drawn, job, scenes, references, setting, OURS, threshold)
        known.add(row)
    few = Job(job.prompts[:peer_prompts], STEPS, 128, 128, 1)
    theirs = [setting for setting in chosen if setting.peer]
    whole = pipe.transformer
    for setting in track(theirs, description="cache-dit", console=Console(stderr=True)):
        mine = known.get(OURS, setting.name)
        if mine is None or time.monotonic() > end:
            break
        same = known.get(SAME, setting.name)
        if same is None:
            drawn = lambda job, threshold, options=setting.options: draw(pipe, job, options(threshold))  # noqa: E731
            few_of_ours = replace(few, batch=batch)
            same = measure(pipe, drawn, few_of_ours, scenes, references, setting, SAME, mine.threshold)
            known.add(same)
        if known.get(PEER, setting.name) is None:
            drawn = peer(pipe, whole, setting)
            threshold = find_threshold(drawn, few, same.share, prompts=8)
            known.add(measure(pipe, drawn, few, scenes, references, setting, PEER, threshold))
            pipe.transformer = whole
    rows = known.rows
    text = table(rows, prompts, peer_prompts, batch)
    if missing := len(settings()) + 2 * len(theirs) + 2 - len(rows):
        text += f"\n{missing} rows are still to be measured.\n"
    print(text)
    if doc.exists() and (page := doc.read_text()).count(MARK) == 2:
        before, _, after = page.split(MARK)
        doc.write_text(f"{before}{MARK}\n\n{text}\n{MARK}{after}")
    draw_plot(rows, plot)


class Known:
    """Rows by who and setting, kept in a file."""

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


def measure(
    pipe: Any,
    drawn: Draw,
    job: Job,
    scenes: list[Scene],
    references: np.ndarray,
    setting: Setting,
    who: str,
    threshold: float,
) -> Row:
    """Draw the job at a threshold, and judge the images."""
    pictures, computed, seconds = drawn(job, threshold)
    count = len(pictures)
    verdicts = [judge(scene, picture) for scene, picture in zip(scenes[:count], pictures, strict=True)]
    return Row(
        who,
        setting.name,
        round(threshold, 4),
        threshold != setting.threshold,
        computed,
        float(psnr(pictures, references[:count]).mean()),
        float(ssim(pictures, references[:count]).mean()),
        float(feature_distance(pipe.vae, pictures, references[:count]).mean()),
        shares(verdicts)["all_right"],
        seconds,
    )


def find_threshold(drawn: Draw, job: Job, share: float, looks: int = 7, prompts: int = 2) -> float:
    """The threshold at which about ``share`` of the blocks is computed, by bisection on the first prompts."""
    few = Job(job.prompts[:prompts], job.steps, job.width, job.height, job.batch)
    low, high = np.log(0.002), np.log(2.0)
    for _ in range(looks):
        middle = (low + high) / 2
        computed = drawn(few, float(np.exp(middle)))[1]
        if abs(computed - share) < 0.005:
            return float(np.exp(middle))
        low, high = (middle, high) if computed > share else (low, middle)
    return float(np.exp((low + high) / 2))


def peer(pipe: Any, whole: torch.nn.Module, setting: Setting) -> Draw:
    """Drawing with cache-dit at a setting's block counts, one image at a time: it decides once for a whole batch."""
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
        pictures, seconds = refresh(threshold, job, pipe)
        return pictures, calls[0] / (blocks * job.steps * len(job.prompts)), seconds

    return run


def table(rows: list[Row], prompts: int, peer_prompts: int, batch: int) -> str:
    """The rows as Markdown, ours before the peer's row of the same setting."""
    lines = [
        f"{prompts} held-out captions (cache-dit, and ours in the row above it: the first {peer_prompts}), "
        f"{STEPS} steps, 128x128, float32. "
        f"Seconds are of the processor, {torch.get_num_threads()} thread(s); ours drawn {batch} at a time, cache-dit "
        "one at a time, so they compare only within one of the two.",
        "",
        "| setting | threshold | blocks computed | PSNR dB | SSIM | distance | accuracy | s a picture |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = {row.setting: index for index, row in reversed(list(enumerate(rows)))}
    for row in sorted(rows, key=lambda row: (order[row.setting], (OURS, SAME, PEER).index(row.who))):
        named = {
            OURS: row.setting,
            SAME: f"&nbsp;&nbsp;the first {peer_prompts}",
            PEER: f"&nbsp;&nbsp;{PEER}, same share",
        }
        name = named[row.who]
        threshold = "" if row.setting == "uncached" else f"{row.threshold:g}{' (re-tuned)' if row.tuned else ''}"
        figures = f"{row.share:.1%} | {row.psnr:.1f} | {row.ssim:.4f} | {row.distance:.4f} | {row.accuracy:.1%}"
        seconds = f"{row.seconds:.2f}" if row.seconds else "-"
        lines.append(f"| {name} | {threshold} | {figures} | {seconds} |")
    return "\n".join(lines) + "\n"


def _kind(row: Row) -> str:
    """The part of a plot's label that tells a row's group from the others of its ``who``."""
    if row.who != OURS:
        return ""
    return "forecast" if "forecast" in row.setting else "presets" if "preset" in row.setting else "ours"


def draw_plot(rows: list[Row], path: Path) -> None:
    """Quality over the share of blocks computed, ours and the peer's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    groups = (
        (OURS, "ours", ".", "C0"),
        (SAME, "ours, the captions that cache-dit drew", "o", "C0"),
        (PEER, PEER, "x", "C3"),
        (OURS, "ours, forecast", "s", "C2"),
        (OURS, "ours, presets", "D", "C1"),
    )
    for who, label, marker, colour in groups:
        chosen = [row for row in rows if row.who == who and row.setting != "uncached" and label.endswith(_kind(row))]
        axes.scatter([row.share for row in chosen], [row.psnr for row in chosen], marker=marker, c=colour, label=label)
    axes.set(xlabel="share of blocks computed", ylabel="PSNR to the uncached picture, dB")
    axes.set_title("Quality against computation, bundled model, 28 steps, 128x128")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    typer.run(main)
