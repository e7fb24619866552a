"""Latency against throughput: the same GPUs as many small gangs or few large ones.

    python -m benchmarks.frontier [--measure] [--per-minute 12 --goal 20] [--out TABLE.md]

Predicts 4 x L20 from one GPU's block time, the all-to-all volume and the link's speed, beside every published number;
with ``--measure`` draws on 4 gangs of 1, 2 of 2 and 1 of 4 ranks on the machine at hand, too.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import typer
import yaml

from benchmarks.capacity_model import FLUX_DEV_1024, L20, PUBLISHED, gangs_needed, seconds
from benchmarks.report import Table, machine, write

_SHAPES = ((4, 1), (2, 2), (1, 4))


def main(
    measure: bool = typer.Option(False, help="draw on this machine, too"),
    config: Path = typer.Option(Path("serve_configs/laptop_dbcache.yaml"), help="what to draw with"),
    size: str = typer.Option("128x128"),
    steps: int = typer.Option(12, min=2),
    rounds: int = typer.Option(3, min=2, help="pictures per gang"),
    per_minute: float = typer.Option(12.0, min=0.01, help="pictures asked for a minute"),
    goal: float = typer.Option(20.0, min=0.1, help="seconds within which 95 % shall be answered"),
    computed: float = typer.Option(0.6, min=0.01, max=1, help="share of blocks computed (a report's fraction)"),
    factor: float = typer.Option(20.3 / 24.85, help="of compute time, by compilation and quantisation"),
    out: Path | None = typer.Option(None, help="write the tables here as Markdown too"),
) -> None:
    """Print the tables."""
    tables = [Table("Predicted beside published: L20, FLUX.1-dev, 1024x1024, 28 steps", _HEAD, list(_published()))]
    title = (
        f"Four L20, {computed:.0%} of blocks computed, compute x {factor:.2f}; {per_minute:g} a minute in {goal:g} s"
    )
    tables.append(Table(title, _PLAN, list(_plans(computed, factor, per_minute, goal))))
    for table in tables:
        table.show()
    if measure:
        rows = list(_measured(config, size, steps, rounds))
        title = f"Measured: {config.name}, {size}, {steps} steps, no cache; {machine()}"
        tables.append(Table(title, ("gangs x ranks", "seconds a picture", "pictures a minute"), rows))
        tables[-1].show()
    write(out, *tables)


_HEAD = ("what", "published s", "predicted s", "error")
_PLAN = ("gangs x ranks", "seconds a picture", "pictures a minute", "gangs for the goal", "GPUs for the goal")


def _published() -> Iterator[tuple[str, ...]]:
    for point in PUBLISHED:
        predicted = seconds(FLUX_DEV_1024, L20, point.ranks, computed=point.computed, factor=point.factor)
        error = predicted / point.published_s - 1
        yield point.name, f"{point.published_s:.2f}", f"{predicted:.2f}", f"{error:+.1%}"


def _plans(computed: float, factor: float, per_minute: float, goal: float) -> Iterator[tuple[str, ...]]:
    for gangs, ranks in _SHAPES:
        each = seconds(FLUX_DEV_1024, L20, ranks, computed=computed, factor=factor)
        needed = gangs_needed(per_minute, goal, each)
        counts = ("never", "never") if needed is None else (str(needed), str(needed * ranks))
        yield f"{gangs} x {ranks}", f"{each:.2f}", f"{60 * gangs / each:.1f}", *counts


def _measured(config: Path, size: str, steps: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """One picture alone, then every gang busy at once."""
    import ray

    from cache_core import NoCacheOptions
    from raycache.gang.gang import Gang
    from raycache.protocol.job import Job
    from raycache.settings import AppSettings

    arguments = yaml.safe_load(config.read_text())["applications"][0]["args"]
    width, height = (int(part) for part in size.split("x"))
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def job(name: str) -> Job:
        return Job(name, "a red circle on a white background", width, height, (7,), steps, 3.5, NoCacheOptions())

    try:
        for count, ranks in _SHAPES:
            parallel = arguments.get("parallel", {}) | {"ranks_per_replica": ranks}
            settings = AppSettings.model_validate(arguments | {"parallel": parallel})
            gangs = [Gang(settings, name=f"frontier{count}x{ranks}-{i}") for i in range(count)]
            try:
                for gang in gangs:
                    gang.start()
                first = gangs[0]
                first.submit(job("warm")).future.result(timeout=600)
                alone = [first.submit(job(f"alone{i}")).future.result(timeout=600).denoise_s for i in range(rounds)]
                began = time.monotonic()
                handles = [gang.submit(job(f"busy{i}")) for gang in gangs for i in range(rounds)]
                for handle in handles:
                    handle.future.result(timeout=600)
                minutes = (time.monotonic() - began) / 60
            finally:
                for gang in gangs:
                    gang.shutdown()
            yield f"{count} x {ranks}", f"{statistics.median(alone):.2f}", f"{count * rounds / minutes:.1f}"
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
