"""Kills a rank repeatedly: seconds until the gang is ready again, with and without spare processes, in turns.

    python -m benchmarks.rebuild [--ranks 2] [--rounds 5] [--compiled] [--out TABLE.md]

Two gangs with the model of the config, without HTTP, one of which keeps spares; one gang is idle while the other is
rebuilt. Seconds are from the death of a rank until the gang is ready again; cells are medians (least - most), and the
last column is the median of the ratios within a round. The first start is that of the gang without spares. With
`--compiled` it has to compile, in an empty folder, where all later starts find the code.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import typer
from rich.progress import track

from benchmarks.report import machine, show_table, spread
from benchmarks.serving import settings_of
from raycache.gang.gang import Gang

__all__ = ["settle"]

COLUMNS = ["stage", "first start, s", "without, s", "with spares, s", "with / without"]


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    ranks: int = typer.Option(2, min=1, help="of each gang"),
    rounds: int = typer.Option(5, min=2, help="deaths of each gang"),
    tiny: bool = typer.Option(False, help="use a model of 2 + 4 blocks instead of the configured one"),
    compiled: bool = typer.Option(False, help="with compiled blocks"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        _measure(config, ranks, rounds, tiny, {"compile": compiled, "cache_dir": folder}, out)


def _measure(config: Path, ranks: int, rounds: int, tiny: bool, model: dict[str, Any], out: Path | None) -> None:
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    gangs = {
        spares: Gang(
            settings_of(
                config,
                tiny,
                model=model,
                parallel={"ranks_per_replica": ranks, "spare_processes": spares},
                reliability={"max_restarts": 99},
            ),
            name="spared" if spares else "plain",
        )
        for spares in (False, True)
    }
    first: dict[str, float] = {}
    try:
        for gang in gangs.values():
            began = time.monotonic()
            gang.start()
            first = first or {"all": time.monotonic() - began, **gang.status().stages}
        seconds: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in track(range(rounds), "deaths"):
            for spares, gang in gangs.items():
                settle()
                seconds[spares].append(_rebuilt(gang))
    finally:
        for gang in gangs.values():
            gang.shutdown()
        ray.shutdown()
    rows = [
        [stage, f"{first.get(stage, 0):.1f}", *_row(*([each[stage] for each in seconds[spares]] for spares in gangs))]
        for stage in seconds[True][0]
    ]
    what = "compiled" if model["compile"] else "not compiled"
    show_table(f"{config.name}, {ranks} ranks, {what}, {rounds} deaths each; {machine()}", COLUMNS, rows, out)


def settle(limit_s: float = 60) -> None:
    """Wait until spares have finished their imports, so that no gang is rebuilt at the same time; on a machine that is
    busy otherwise, for ``limit_s``."""
    quiet, end = 0, time.monotonic() + limit_s
    while quiet < 3 and time.monotonic() < end:
        quiet = quiet + 1 if psutil.cpu_percent(interval=1.0) < 15 else 0


def _rebuilt(gang: Gang) -> dict[str, float]:
    before = gang.status().restarts
    began = time.monotonic()
    os.kill(gang.status().ranks[-1]["pid"], signal.SIGKILL)
    while not (status := gang.status()).ready or status.restarts == before:
        time.sleep(0.01)
    return {"all": time.monotonic() - began, **status.stages}


def _row(without: list[float], spared: list[float]) -> list[str]:
    ratios = [new / old for old, new in zip(without, spared, strict=True) if old]
    return [spread(without), spread(spared), f"{statistics.median(ratios):.2f}" if ratios else "-"]


if __name__ == "__main__":
    typer.run(main)
