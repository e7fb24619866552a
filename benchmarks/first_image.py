"""Time from a cold start to the first image, and the effect of ranks and caching on an image's time.

    python -m benchmarks.first_image [--config serve_configs/laptop_dbcache.yaml] [--out TABLE.md]

Starts the real application (`serve run`), waits for `/readyz`, generates one image; then generates on gangs of 1, 2 and
4 ranks without Serve. The cost of a decision is the time of an image that decides in every step and never reuses, minus
that of one that does not decide, per step. The cache is the configuration's.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.report import Table, machine, quartiles, write
from benchmarks.serving import ask, settings_of
from raycache.testing.inject import readiness
from raycache.testing.serve_run import serve_run

URL = "http://127.0.0.1:8000"
_NEVER = "deciding, never reusing"


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_dbcache.yaml"), help="the application to start"),
    size: str = typer.Option("128x128", help="image size"),
    steps: int = typer.Option(28, help="denoising steps"),
    rounds: int = typer.Option(5, help="images per row"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    rows: list[tuple[str, str]] = []
    table = Table(f"{config.name}, {size}, {steps} steps; {machine()}", ["what", "seconds"], rows)
    for row in itertools.chain(_start_up(config, size, steps), _gangs(config, size, steps, rounds)):
        rows.append(row)
        # Printed at once: on a slow machine the rest takes minutes, and a stopped run should keep what it has.
        Console().print(f"{row[0]}: {row[1]}")
        write(out, table)
    table.show()


def _start_up(config: Path, size: str, steps: int) -> Iterator[tuple[str, str]]:
    start = time.monotonic()
    with serve_run(config) as process:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"serve run ended with code {process.returncode}; run it by hand to see why")
            if time.monotonic() - start > 300:
                raise SystemExit("not ready after 300 s; run it by hand to see why")
            if readiness(URL, 2).get("ready"):
                break
            time.sleep(0.2)
        yield "`serve run` to ready", f"{time.monotonic() - start:.1f}"
        answer = ask(URL, 120, prompt="a red circle left of a blue square", size=size, num_inference_steps=steps)
        if answer.image is None:
            raise SystemExit(f"no image: {answer.body['error']['message']}")
        yield "`serve run` to the first image", f"{time.monotonic() - start:.1f}"


def _gangs(config: Path, size: str, steps: int, rounds: int) -> Iterator[tuple[str, str]]:
    import ray

    from cache_core import CacheOptions, DBCacheOptions, NoCacheOptions
    from raycache.gang.gang import Gang
    from raycache.protocol.job import ImageSpec, Job
    from raycache.size import Size

    cached = settings_of(config, tiny=False).cache
    if not isinstance(cached, DBCacheOptions):
        raise typer.BadParameter(f"{config} has a cache of type {cached.type}; this command compares DBCache")
    never = cached.model_copy(update={"warmup_steps": 0, "residual_diff_threshold": 1e-9})
    methods: dict[str, CacheOptions] = {"no cache": NoCacheOptions(), _NEVER: never, "DBCache": cached}
    # Logical CPUs, so that the gangs can be placed on any machine.
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        for ranks in (1, 2, 4):
            gang = Gang(settings_of(config, False, parallel={"ranks_per_replica": ranks}), name=f"bench{ranks}")
            gang.start()
            try:
                seconds: dict[str, list[float]] = {name: [] for name in methods}
                for number in track(range(rounds + 1), description=f"{ranks} rank(s)"):
                    for name, options in methods.items():
                        image = ImageSpec("a red circle", 7, 3.5, options)
                        job = Job(f"{ranks}-{number}-{name}", Size.parse(size), (image,), steps)
                        output = gang.submit(job).future.result(timeout=300)
                        if number:  # the first image warms up
                            seconds[name].append(output.denoise_s)
            finally:
                gang.shutdown()
            for name, values in seconds.items():
                yield f"denoise, {ranks} rank(s), {name}", quartiles(values)
            extra = [(a - b) / steps for a, b in zip(seconds[_NEVER], seconds["no cache"], strict=True)]
            yield f"one decision, {ranks} rank(s), in microseconds", quartiles([1e6 * value for value in extra], 0)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
