"""``python -m raycache.demo.training --out DIR``: draw the data, train the demonstration model, write its folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache_core.blocks import find_blocks
from raycache.demo import demo_model_path
from raycache.demo.training.autoencoder import load_autoencoder, polish_decoder, train_autoencoder
from raycache.demo.training.drawer import Drawer
from raycache.demo.training.export import export_model
from raycache.demo.training.latents import OTHER_SIZES, Latents, encode_scenes, load_latents, save_latents
from raycache.demo.training.parts import LAYERS, SINGLE_LAYERS, TEXT_TOKENS
from raycache.demo.training.start import take_parts
from raycache.demo.training.transformer import Stage, load_average, train_stage
from raycache.demo.words import make_tokenizers

PHASES = ("autoencoder", "latents", "few-blocks", "all-blocks", "guidance", "decoder", "export")
FEW = Stage(
    name="few-blocks",
    layers=4,
    single_layers=8,
    steps=10600,
    batch=64,
    rate=2.5e-3,
    warmup=100,
    fall_from=0.0,
    last_rate=0.05,
    other_sizes=0.7,
    sizes_from=0.8,
    untold=0.0,
    layout_until=4800,
)
ALL = Stage(
    name="all-blocks",
    layers=LAYERS,
    single_layers=SINGLE_LAYERS,
    steps=4000,
    batch=64,
    rate=1.5e-3,
    warmup=50,
    fall_from=0.6,
    last_rate=0.02,
    other_sizes=0.65,
    sizes_from=0.0,
    untold=0.1,
    layout_until=0,
)
GUIDED = replace(ALL, name="guidance", steps=2000, rate=1e-3, fall_from=0.2)

Result = TypeVar("Result")


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints; the finished model is put in its `flux_tiny`.")],
    seed: Annotated[int, typer.Option(help="Seed of data, weights and noise.")] = 0,
    autoencoder_steps: Annotated[int, typer.Option(help="16 crops of 64x64 each.")] = 2000,
    scenes: Annotated[int, typer.Option(help="Scenes of 128x128 that the transformer learns from.")] = 12000,
    few_steps: Annotated[int, typer.Option(help="Steps with 12 blocks, 64 scenes each.")] = FEW.steps,
    all_steps: Annotated[int, typer.Option(help="Steps with all blocks, 64 scenes each.")] = ALL.steps,
    guidance_steps: Annotated[int, typer.Option(help="Steps that teach it guidance, 64 scenes each.")] = GUIDED.steps,
    decoder_steps: Annotated[int, typer.Option(help="Last steps of the decoder alone.")] = 2500,
    from_model: Annotated[str | None, typer.Option(help="A model to train on from: a folder, or `demo`.")] = None,
    phase: Annotated[list[str] | None, typer.Option(help=f"Only these of {', '.join(PHASES)}.")] = None,
    compile_blocks: Annotated[bool | None, typer.Option(help="Compile blocks; by default on a GPU only.")] = None,
) -> None:
    """Train the demonstration model; run the same command again to continue where it stopped.

    With ``--from-model`` the autoencoder and the first blocks are not trained but those of a finished model.

    Under ``torchrun --nproc-per-node N -m raycache.demo.training ...`` the transformer's batches are divided over N
    processes. On CPU one process for each core, with OMP_NUM_THREADS=1, is faster than one for all.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    compiled = device.type == "cuda" if compile_blocks is None else compile_blocks
    chosen = _phases(phase)
    alone = _alone()
    t5_words, clip_words = map(len, make_tokenizers(TEXT_TOKENS))
    words = t5_words, clip_words
    started, scaling = _started(from_model, out)
    if started is not None:
        chosen = [name for name in chosen if name not in ("autoencoder", "few-blocks")]
    if "autoencoder" in chosen and alone:
        watch("autoencoder", autoencoder_steps, train_autoencoder(out, autoencoder_steps, device, seed))
    if "latents" in chosen and alone and not (out / "latents.pt").exists():
        make_latents(out, scenes, device, seed, scaling)
    _wait_for_all()
    run = Run(out, words, device, seed, compiled)
    if "few-blocks" in chosen:
        run.train(shortened(FEW, few_steps))
    _wait_for_all()  # rank 0 saves the model that all grow from
    if "all-blocks" in chosen:
        run.train(shortened(ALL, all_steps), previous=started or run.trained(FEW))
    _wait_for_all()
    if "guidance" in chosen:
        run.train(shortened(GUIDED, guidance_steps), teacher=run.teacher(started))
    if "decoder" in chosen and alone:
        watch("decoder", decoder_steps, polish_decoder(out, decoder_steps, device, seed))
    if "export" in chosen and alone:
        print(export_model(out, out / "flux_tiny"))


def _started(model: str | None, out: Path) -> tuple[Drawer | None, tuple[float, float] | None]:
    """What :func:`~raycache.demo.training.start.take_parts` takes from ``--from-model``, if that was given."""
    if model is None:
        return None, None
    try:
        return take_parts(demo_model_path() if model == "demo" else Path(model), out)
    except ValueError as problem:
        raise typer.BadParameter(str(problem), param_hint="--from-model") from None


def drop_old_student(student: Path, teacher: Path) -> None:
    """Remove what was learned from weights that have been trained further since."""
    if student.exists() and student.stat().st_mtime < teacher.stat().st_mtime:
        student.unlink()


def shortened(stage: Stage, steps: int) -> Stage:
    """``stage`` with another number of steps, of which at most a third warm up."""
    return replace(stage, steps=steps, warmup=min(stage.warmup, max(1, steps // 3)))


def _alone() -> bool:
    """Whether this process does what only one may: the first of several, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def _phases(chosen: list[str] | None) -> list[str]:
    if unknown := [name for name in chosen or () if name not in PHASES]:
        raise typer.BadParameter(f"unknown phase {unknown[0]!r}; possible: {', '.join(PHASES)}", param_hint="--phase")
    return chosen or list(PHASES)


@dataclass(frozen=True)
class Run:
    """Stages of one transformer: on the latents in ``out``, with vocabularies of ``words``."""

    out: Path
    words: tuple[int, int]
    device: torch.device
    seed: int
    compiled: bool

    def train(self, stage: Stage, previous: Drawer | None = None, teacher: Drawer | None = None) -> None:
        """Train a stage, see :func:`~raycache.demo.training.transformer.train_stage`."""
        sets, common = load_latents(self.out / "latents.pt")[0], (self.words, self.device, self.seed, self.compiled)
        watch(stage.name, stage.steps, train_stage(self.out, stage, sets, *common, previous, teacher))
        if stage.name == ALL.name and _alone():
            drop_old_student(self.out / f"{GUIDED.name}.pt", self.out / f"{ALL.name}.pt")

    def teacher(self, started: Drawer | None) -> Drawer:
        """What guidance is learned from: all blocks as trained here, else the model that the training began with."""
        if (self.out / f"{ALL.name}.pt").exists():
            return self.trained(ALL)
        if started is None or (len(find_blocks(started.transformer)) < LAYERS + SINGLE_LAYERS):
            message = f"guidance is learned from all blocks, but {self.out} has no {ALL.name}.pt; run that phase first"
            raise typer.BadParameter(message, param_hint="--phase")
        return started

    def trained(self, stage: Stage) -> Drawer:
        """The averaged weights that a stage left."""
        return load_average(self.out / f"{stage.name}.pt", stage.layers, stage.single_layers, self.words)


def make_latents(
    out: Path, scenes: int, device: torch.device, seed: int, scaling: tuple[float, float] | None = None
) -> None:
    """Draw and encode the scenes of all sizes; their shift and scale to unit variance are measured if not given."""
    model = load_autoencoder(out, device)
    sets: list[Latents] = []
    for width, height in ((128, 128), *OTHER_SIZES):
        count = scenes if (width, height) == (128, 128) else scenes // 3
        made = encode_scenes(model, count, width, height, seed, device)
        sets.append(watch(f"latents {width}x{height}", count, made))
    packed = sets[0].packed.float()
    shift, scale = scaling or (float(packed.mean()), float(1 / packed.std()))
    save_latents(out / "latents.pt", sets, shift, scale)


def watch(title: str, total: int, steps: Generator[tuple[int, dict[str, float]], None, Result]) -> Result:
    """Run ``steps`` behind a progress bar, or with occasional lines if there is no terminal; returns its result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    watched = sys.stderr.isatty()
    told_at = 0
    with Progress(*columns, console=Console(stderr=True), disable=not watched) as bar:
        task = bar.add_task(title, total=total)
        while True:
            try:
                done, figures = next(steps)
            except StopIteration as end:
                return end.value
            told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            bar.update(task, completed=done, description=f"{title}  {told}")
            if not watched and _alone() and (done - told_at >= (50 if total > 500 else 5) or done == total):
                told_at = done
                print(f"{time.strftime('%H:%M:%S')} {title}: {done} of {total}  {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
