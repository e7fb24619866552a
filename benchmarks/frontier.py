"""Latency against throughput: this machine used as many small gangs or few large ones.

    python -m benchmarks.frontier [--out TABLE.md]

Generates on 4 gangs of 1 rank, 2 of 2 and 1 of 4. `benchmarks.capacity` predicts the same for L20s.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import typer
import yaml

from benchmarks.report import machine, show_table

_SHAPES = ((4, 1), (2, 2), (1, 4))


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    size: str = typer.Option("128x128"),
    steps: int = typer.Option(12, min=2),
    rounds: int = typer.Option(3, min=2, help="images per gang"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    rows = list(_measured(config, size, steps, rounds))
    title = f"Measured: {config.name}, {size}, {steps} steps, no cache; {machine()}"
    show_table(title, ("gangs x ranks", "seconds per image", "images per minute"), rows, out)


def _measured(config: Path, size: str, steps: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """One image alone, then all gangs busy at the same time."""
    import ray

    from cache_core import NoCacheOptions
    from raycache.gang.gang import Gang
    from raycache.protocol.job import ImageSpec, Job
    from raycache.settings import AppSettings
    from raycache.size import Size

    arguments = yaml.safe_load(config.read_text())["applications"][0]["args"]
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def job(name: str) -> Job:
        image = ImageSpec("a red circle on a white background", 7, 3.5, NoCacheOptions())
        return Job(name, Size.parse(size), (image,), steps)

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
