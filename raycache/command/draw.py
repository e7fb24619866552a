"""``raycache draw``: one image into a file, from a service if one runs here, else from the bundled model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raycache.command.telling import fail, told

__all__ = ["draw"]

_HERE = "http://127.0.0.1:8000"
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def draw(
    prompt: Annotated[str, typer.Argument(help='What to draw: "a red circle left of a blue square".')],
    out: Annotated[Path, typer.Option("--out", "-o", help="File; its suffix is the format: .png, .jpg, .webp.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same image; default: random.")] = None,
    quality: Annotated[str | None, typer.Option(help="exact, high, balanced or fast.")] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="none, DBCache, FBCache, DBPrune, ForecastCache, BudgetCache, ScheduleCache, or options as JSON."
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Address of a service; default: {_HERE}, if one answers.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Draw one image. The key for a service is read from $RAYCACHE_API_KEY."""
    format = _checked(out, force)
    asked = {"size": size, "num_inference_steps": steps, "seed": seed, "quality": quality, "cache": _cache(cache)}
    request: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    request |= {"prompt": prompt, "output_format": format}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=told()) as bar:
        image, line, warnings = _drawn(request, url, bar)
    for warning in warnings:
        told().print(f"Warning: {warning}", style="yellow", markup=False)
    try:
        out.write_bytes(image)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")
    told().print(f"{out}: {line}", markup=False)


def _checked(out: Path, force: bool) -> str:
    """The format of ``out``, which can be written."""
    format = _FORMATS.get(out.suffix.lower())
    if format is None:
        fail(f"{out}: the suffix must be one of {', '.join(_FORMATS)}, got {out.suffix or 'none'!r}")
    if out.is_dir():
        fail(f"{out} is a folder; name a file")
    if out.exists() and not force:
        fail(f"{out} is there already; --force replaces it")
    if not out.parent.is_dir():
        fail(f"there is no folder {out.parent} for {out.name}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        fail(f"{out} cannot be written: permission denied")
    return format


def _cache(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return {"type": text}
    try:
        options = json.loads(text)
    except ValueError as error:
        fail(f"--cache is no JSON: {error}")
    return dict(options)


def _drawn(request: dict[str, Any], url: str | None, bar: Progress) -> tuple[bytes, str, list[str]]:
    """The file's bytes, what is told of them, and warnings."""
    from raycache.command.asking import ServiceError, ask, is_service

    task = bar.add_task("looking for a service", total=None)
    try:
        if url or is_service(_HERE):
            return ask((url or _HERE).rstrip("/"), request, bar, task)
    except ServiceError as error:
        fail(str(error), error.code)
    bar.update(task, description="loading the bundled model")
    from raycache.command.drawing import DrawingError, draw_here

    try:
        return draw_here(request, bar, task)
    except DrawingError as error:
        fail(str(error))
