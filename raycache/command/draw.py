"""``raycache draw``: one image into a file, from a service if one runs here, else from the bundled model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raycache.command.drawn import HERE, cache_named, drawing_at
from raycache.command.telling import fail, progress, told

__all__ = ["draw"]

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
            help="none, DBCache, FBCache, DBPrune, ForecastCache, BudgetCache, ScheduleCache, options as JSON, or a "
            'goal: \'{"type": "auto", "target_psnr": 45}\'.'
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"Address of a service; default: {HERE}, if one answers.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
) -> None:
    """Draw one image. The key for a service is read from $RAYCACHE_API_KEY."""
    format = _checked(out, force)
    options = cache_named("--cache", cache) if cache is not None else None
    asked = {"size": size, "num_inference_steps": steps, "seed": seed, "quality": quality, "cache": options}
    request: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    request |= {"prompt": prompt, "output_format": format}
    with progress() as bar:
        draw_one, _ = drawing_at(url, bar, bar.add_task("starting", total=None))
        drawn = draw_one(request)
    for warning in drawn.warnings:
        told().print(f"Warning: {warning}", style="yellow", markup=False)
    try:
        out.write_bytes(drawn.image)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")
    told().print(f"{out}: {drawn.line}", markup=False)


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
