"""Three ways to make FLUX's blocks faster on a CPU, each against diffusers' own blocks, in turns in one process.

    python -m benchmarks.faster_blocks [--rounds 9] [--only processor] [--no-wide] [--out TABLE.md]

*Processor called at once*: without reading its signature first, as the service does. *Projections fused*: one matrix
for query, key and value (`fuse_qkv_projections`). *Blocks compiled*: as `model.compile: true` does. One thread, CPU
time of this process; the ratio is to the plain image of the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers.pipelines import FluxPipeline
from rich.progress import track

from benchmarks.report import Table, machine, quartiles, write
from benchmarks.serving import settings_of
from benchmarks.workload import Schedule, flux, sharing_weights
from cache_core import apply_cache_on_pipe
from raycache.demo import demo_model_path
from raycache.models.compiling import BlockCompiler
from raycache.models.direct_attention import attend_directly
from raycache.worker.load_stages import compile_seconds

_PLAIN, _AGAIN, _DIRECT = "as diffusers has them", "the same again", "processor called at once"
_FUSED, _COMPILED = "projections fused", "blocks compiled"

Draw = Callable[[], torch.Tensor]


@dataclass
class Way:
    """One way to call the blocks, and its measurements.

    Attributes:
        draw: an image's latent.
        seconds: of CPU time, per round.
        latent: the first one drawn.
        compiling: seconds spent compiling.
    """

    name: str
    draw: Draw
    seconds: list[float] = field(default_factory=list)
    latent: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    compiling: float = 0.0


def main(
    rounds: int = typer.Option(9, min=2, help="images per way"),
    only: str = typer.Option("", help="of the ways, those whose name contains this, beside diffusers' own"),
    wide: bool = typer.Option(True, help="also measure the wider blocks"),
    out: Path | None = typer.Option(None, help="also write the tables here, as Markdown"),
) -> None:
    """Print both tables."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    tables = []
    for title, all_ways in (_bundled(), _wide()) if wide else (_bundled(),):
        ways = [*all_ways[:2], *(way for way in all_ways[2:] if only in way.name)]
        _measure(ways, rounds, title)
        rows = [_row(way, ways[0]) for way in ways]
        header = ["blocks", "seconds", "ratio", "largest difference of a latent", "compiling, s"]
        tables.append(Table(f"{title}, {rounds} rounds; {machine()}", header, rows))
        tables[-1].show()
        write(out, *tables)


def _bundled() -> tuple[str, list[Way]]:
    """The bundled model as the laptop's configuration runs it: 128x128, 28 steps, its cache."""
    pipe: Any = FluxPipeline.from_pretrained(demo_model_path(), dtype=torch.float32)
    embeds, pooled, _ = pipe.encode_prompt("a red circle left of a blue square", None, max_sequence_length=64)
    cache = settings_of(Path("serve_configs/laptop_dbcache.yaml"), tiny=False).cache

    def drawing(transformer: Any) -> Draw:
        own: Any = FluxPipeline(**pipe.components | {"transformer": transformer})
        own.set_progress_bar_config(disable=True)
        apply_cache_on_pipe(own, cache.type, **cache.model_dump(exclude={"type"}))

        def draw() -> torch.Tensor:
            return own(
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                height=128,
                width=128,
                num_inference_steps=28,
                output_type="latent",
                generator=torch.Generator().manual_seed(7),
            ).images

        return draw

    model = pipe.transformer
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    return f"Bundled model ({blocks} blocks of width {model.inner_dim}), 128x128, 28 steps, {cache.type}", _ways(
        model, drawing
    )


def _wide() -> tuple[str, list[Way]]:
    """Wider blocks, of which most of the time is matrices."""
    model = flux(doubles=2, singles=2, heads=8, head_dim=64, dtype=torch.float32, device="cpu")
    schedule = Schedule(8, tokens=64, text=16, dtype=torch.float32, device="cpu")
    return "Random FLUX (2 + 2 blocks of width 512), 64 + 16 tokens, 8 steps, no cache", _ways(
        model, lambda transformer: lambda: schedule.run(transformer)
    )


def _ways(model: Any, drawing: Callable[[Any], Draw]) -> list[Way]:
    direct, fused, compiled = (sharing_weights(model) for _ in range(3))
    attend_directly(direct)
    fused.fuse_qkv_projections()
    BlockCompiler().compile(compiled)
    return [
        Way(_PLAIN, drawing(sharing_weights(model))),
        Way(_AGAIN, drawing(sharing_weights(model))),
        Way(_DIRECT, drawing(direct)),
        Way(_FUSED, drawing(fused)),
        Way(_COMPILED, drawing(compiled)),
    ]


def _measure(ways: list[Way], rounds: int, title: str) -> None:
    for way in ways:
        before = compile_seconds()
        way.latent = _draw(way)[0]
        way.compiling = compile_seconds() - before
        _draw(way)
    for number in track(range(rounds), description=title.split(",")[0]):
        for way in ways if number % 2 else ways[::-1]:
            way.seconds.append(_draw(way)[1])


def _draw(way: Way) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    return way.draw(), time.process_time() - start


def _row(way: Way, plain: Way) -> tuple[str, ...]:
    ratios = [own / base for own, base in zip(way.seconds, plain.seconds, strict=True)]
    far = (way.latent - plain.latent).abs().max().item()
    return (
        way.name,
        quartiles(way.seconds),
        quartiles(ratios, 3),
        f"{far:.2g}",
        f"{way.compiling:.0f}" if way.compiling else "",
    )


if __name__ == "__main__":
    typer.run(main)
