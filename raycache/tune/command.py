"""``raycache tune``: measure settings on a model, write a presets file of those that reach the targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cache_core import parse_options
from cache_core.blocks import find_blocks
from raycache.presets import PRESET_NAMES, Presets
from raycache.presets.auto import ForecastCurve
from raycache.quantization import Quantization
from raycache.settings import ModelSettings
from raycache.size import Size
from raycache.text_files import FileError, entries
from raycache.tune.candidates import Family, check_families
from raycache.tune.sweep import Job, OtherSweepError, Point, Sweep, choose, forecast_curve, frontier

TARGETS = {"high": 36.0, "balanced": 30.0, "fast": 25.0}
_SLACK = 2.0
"""dB below the lowest target at which a family's more aggressive settings are no longer tried."""


def main(
    model: Annotated[str, typer.Option(help="Folder, hub id, or `demo`.")] = "demo",
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one prompt per line, `#` for comments; `demo` has its own.")
    ] = None,
    target_psnr: Annotated[
        list[str] | None, typer.Option(help="`preset=dB`, repeated; a number alone is for `balanced`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for measurements and presets.yaml.")] = None,
    count: Annotated[int, typer.Option(help="Maximum number of prompts.")] = 24,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 28,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT; default 128x128 for `demo`.")] = "",
    batch: Annotated[int, typer.Option(help="Images generated at a time.")] = 8,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default float32 on CPU.")] = "",
    quantization: Annotated[str, typer.Option(help="As model.quantization of the service; needs bfloat16.")] = "none",
    text_encoder: Annotated[bool, typer.Option(help="As model.quantize_text_encoder.")] = False,
    frames: Annotated[int, typer.Option(help="Frames of each video, for a model of videos.")] = 1,
) -> None:
    """Sweep cache settings, print the frontier, write the presets. If stopped, run it again to continue."""
    torch.set_grad_enabled(False)
    targets = read_targets(target_psnr or [])
    drawn = read_size(size or ("128x128" if model == "demo" else "1024x1024"))
    job = Job(tuple(read_prompts(model, prompts, count)), steps, drawn, batch, frames)
    settings = read_settings(model, dtype, quantization, text_encoder)
    pipe = load_pipe(settings)
    quantized = "" if quantization == "none" else f"-{quantization}"
    folder = out or Path(f"tune-{Path(model).name.lower()}{quantized}")
    candidates = check_families(len(find_blocks(pipe.transformer)), steps)
    console = Console(stderr=True)
    try:
        sweep = Sweep(folder, f"{model}{quantized} {settings.dtype}", job)
        sweep.references(pipe)
    except OtherSweepError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from None
    try:
        watch(sweep, pipe, candidates, min(targets.values()) - _SLACK, console)
    except KeyboardInterrupt:
        console.print(f"stopped after {len(sweep.points)} settings; the results are based on these, run again to go on")
    points = list(sweep.points.values())
    Console().print(frontier_table(points))
    chosen = {name: choose(points, target) for name, target in targets.items()}
    for name, point in chosen.items():
        if point is None or point.options["type"] == "none":
            console.print(f"{name}: no setting reaches {targets[name]:g} dB; it stays uncached")
    text = presets_file(model, job, targets, chosen, settings.quantization, forecast_curve(points))
    (folder / "presets.yaml").write_text(text)
    print(text)
    console.print(f"written to {folder / 'presets.yaml'}; set model.presets to it")


def watch(sweep: Sweep, pipe: object, candidates: list[Family], lowest_psnr: float, console: Console) -> None:
    """Run the sweep behind a progress bar."""
    names = [family.name for family in candidates]
    with Progress(console=console) as bar:
        task = bar.add_task("sweep", total=sum(len(family.options) for family in candidates))
        within: dict[str, int] = {}
        for point in sweep.run(pipe, candidates, lowest_psnr):
            within[point.family] = within.get(point.family, 0) + 1
            # A family that ended early counts as completely done.
            passed = sum(len(family.options) for family in candidates[: names.index(point.family)])
            told = f"{point.family}: {point.psnr:.1f} dB"
            bar.update(task, completed=passed + within[point.family], description=told)


def read_targets(words: list[str]) -> dict[str, float]:
    """Targets in dB by preset: the defaults, changed by ``preset=dB`` or a number for ``balanced``."""
    targets = dict(TARGETS)
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            targets[name or "balanced"] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{word!r} is not `preset=dB`", param_hint="--target-psnr") from None
    if unknown := set(targets) - set(PRESET_NAMES[1:]):
        legal = ", ".join(PRESET_NAMES[1:])
        raise typer.BadParameter(f"no preset {min(unknown)!r}; possible: {legal}", param_hint="--target-psnr")
    return targets


def read_size(text: str) -> Size:
    """Parse ``--size``."""
    try:
        return Size.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--size") from None


def read_prompts(model: str, file: Path | None, count: int) -> list[str]:
    """At most ``count`` prompts: the lines of ``file`` without ``#`` comments, or held-out captions."""
    if file is not None:
        try:
            lines = [line for _, line in entries(file)]
        except OSError as error:
            raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--prompts") from None
        except FileError as error:
            raise typer.BadParameter(str(error), param_hint="--prompts") from None
        if not lines:
            raise typer.BadParameter(f"{file} has no prompt", param_hint="--prompts")
        return lines[:count]
    if model != "demo":
        raise typer.BadParameter("a file of prompts is needed for any model except `demo`", param_hint="--prompts")
    from raycache.demo.evaluate import held_out_scenes

    return [scene.caption for scene in held_out_scenes(count, seed=2)]


def read_settings(model: str, dtype: str, quantization: str, text_encoder: bool) -> ModelSettings:
    """The settings of a service for the model."""
    half = torch.cuda.is_available() or quantization != "none"
    document = {
        "path": model,
        "dtype": dtype or ("bfloat16" if half else "float32"),
        "quantization": quantization,
        "quantize_text_encoder": text_encoder,
    }
    try:
        return ModelSettings.model_validate(document)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"]) from None


def load_pipe(settings: ModelSettings) -> Any:
    """The pipeline on the GPU if there is one, else on the CPU."""
    from raycache.models.loading import load_pipeline
    from raycache.models.source import prepare_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_pipeline(settings, prepare_model(settings)[0], device)


def frontier_table(points: list[Point]) -> Table:
    """The Pareto-optimal settings, the most careful first."""
    columns = ("setting", "threshold or speed-up", "blocks computed", "PSNR dB", "SSIM", "distance", "s an image")
    table = Table(*columns, title="frontier")
    for point in frontier(points):
        threshold = point.options.get("residual_diff_threshold", point.options.get("speedup", ""))
        figures = (f"{point.share:.1%}", f"{point.psnr:.1f}", f"{point.ssim:.4f}", f"{point.distance:.4f}")
        table.add_row(point.family, str(threshold), *figures, f"{point.seconds:.2f}")
    return table


def presets_file(
    model: str,
    job: Job,
    targets: dict[str, float],
    chosen: dict[str, Point | None],
    quantization: Quantization = "none",
    curve: ForecastCurve | None = None,
) -> str:
    """The YAML text: each preset, its measured quality and cost, how they were measured, and the curve for goals."""
    source = (
        f"measured by raycache.tune: {len(job.prompts)} prompts, {job.steps} steps, {job.size}; "
        "PSNR to the uncached image of the same seed"
    )
    presets: dict[str, dict[str, object]] = {"exact": {"type": "none"}}
    notes = []
    for name, point in chosen.items():
        presets[name] = {"type": "none"} if point is None else spoken(point.options)
        if point is not None:
            notes.append(f"# {name}: target {targets[name]:g} dB, got {point.psnr:.1f} dB, {point.share:.1%} of blocks")
    body: dict[str, Any] = {"model": model, "source": source, "quantization": quantization, "presets": presets}
    if curve is not None:
        body["curve"] = curve.model_dump(mode="json")
    Presets.model_validate(body)
    return "\n".join(notes) + "\n" + yaml.safe_dump(body, sort_keys=False, width=120)


def spoken(options: dict[str, object]) -> dict[str, object]:
    """Options that differ from their defaults."""
    return {"type": options["type"], **parse_options(options).model_dump(mode="json", exclude_defaults=True)}
