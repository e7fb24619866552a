"""``raycache bench``: cache settings side by side on this machine: seconds, blocks computed, likeness to the first."""

from __future__ import annotations

import io
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from raycache import __version__
from raycache.command.drawn import HERE, Drawn, cache_named, drawing_at
from raycache.command.telling import fail, progress, told

if TYPE_CHECKING:
    import numpy as np

__all__ = ["bench"]

_QUALITIES = ("exact", "high", "balanced", "fast")


@dataclass
class _Row:
    """What one setting took.

    Attributes:
        setting: as it was named on the command line.
        fields: of a request.
        seconds, computed, psnr: of each round; PSNR in decibels against the first setting's image of that round.
    """

    setting: str
    fields: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)

    def add(self, drawn: Drawn, pixels: np.ndarray, reference: np.ndarray) -> None:
        self.seconds.append(drawn.seconds)
        self.computed.append(drawn.computed_share)
        self.psnr.append(_psnr(pixels, reference))


def bench(
    settings: Annotated[
        list[str] | None,
        typer.Option("--with", help="exact, high, balanced, fast, a cache method, or its options as JSON; repeatable."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a red circle left of a blue square",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first round; each round has the next one.")] = 7,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Images of each setting, after one more.")] = 3,
    url: Annotated[str | None, typer.Option(help=f"Address of a service; default: {HERE}, if one answers.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write every round to this JSON file, too.")] = None,
) -> None:
    """Compare cache settings: each round draws one image with every setting, so that all meet the same machine.

    The first setting is the one that others are compared with; by default, `exact` without a cache and the presets.
    """
    rows = [_Row(name, _fields(name)) for name in settings or _QUALITIES]
    if out is not None and not out.parent.is_dir():
        fail(f"there is no folder {out.parent} for {out.name}")
    asked = {"prompt": prompt, "size": size, "num_inference_steps": steps, "output_format": "png"}
    request = {name: value for name, value in asked.items() if value is not None}
    with progress() as bar:
        whole = bar.add_task("images", total=rounds * len(rows))
        place = _measure(rows, request, range(seed, seed + rounds), url, bar, whole)
    Console().print(_table(rows, place))
    if out is not None:
        out.write_text(json.dumps(_record(rows, request, place), indent=1) + "\n")
        told().print(f"{out}: every round", markup=False)


def _fields(setting: str) -> dict[str, Any]:
    return {"quality": setting} if setting in _QUALITIES else {"cache": cache_named("--with", setting)}


def _measure(
    rows: list[_Row], request: dict[str, Any], seeds: range, url: str | None, bar: Progress, whole: TaskID
) -> str:
    """Draws everything; returns where. The first round warms up and shows what is refused; it does not count."""
    task = bar.add_task("starting", total=None)
    draw, place = drawing_at(url, bar, task)
    first = [draw({**request, **row.fields, "seed": seeds[0]}) for row in rows]
    for warning in dict.fromkeys(text for drawn in first for text in drawn.warnings):
        bar.console.print(f"Warning: {warning}", style="yellow", markup=False)
    for seed in seeds:
        reference = None
        for row in rows:
            drawn = draw({**request, **row.fields, "seed": seed})
            pixels = _pixels(drawn.image)
            reference = pixels if reference is None else reference
            row.add(drawn, pixels, reference)
            bar.advance(whole)
    bar.remove_task(task)
    return place


def _pixels(image: bytes) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=np.float64)


def _psnr(pixels: np.ndarray, reference: np.ndarray) -> float:
    """Decibels; infinite if both are equal."""
    error = float(((pixels - reference) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _table(rows: list[_Row], place: str) -> Table:
    table = Table(title=f"{len(rows[0].seconds)} rounds on {place}; medians, and the range of seconds")
    for name in ("setting", "seconds", "range", "times as fast", "blocks computed", "PSNR (dB)"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in rows:
        # Of rounds, not of medians: what a round shares, such as a busy machine, cancels out.
        faster = statistics.median(a / b for a, b in zip(rows[0].seconds, row.seconds, strict=True))
        psnr = statistics.median(row.psnr)
        table.add_row(
            row.setting,
            f"{statistics.median(row.seconds):.2f}",
            f"{min(row.seconds):.2f}-{max(row.seconds):.2f}",
            f"{faster:.2f}",
            f"{100 * statistics.median(row.computed):.0f} %",
            "same" if math.isinf(psnr) else f"{psnr:.1f}",
        )
    return table


def _record(rows: list[_Row], request: dict[str, Any], place: str) -> dict[str, Any]:
    return {
        "raycache": __version__,
        "place": place,
        "request": request,
        "settings": {
            row.setting: {
                "seconds": row.seconds,
                "computed_share": row.computed,
                "psnr": [None if math.isinf(one) else one for one in row.psnr],
            }
            for row in rows
        },
    }
