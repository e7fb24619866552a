"""Hundreds of small jobs of mixed sizes and methods, some cancelled, with a rank killed from time to time.

    python -m benchmarks.soak [--jobs 500] [--kill-every 100] [--out soak.md]

Every job must be answered with 200, except cancelled ones, whose client has left. Resident memory of each rank is read
after every job; its growth is the maximum from the 50th job of that process on, relative to the value at that job.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import typer
from rich.progress import track

from benchmarks.report import machine, show_table
from benchmarks.serving import PATH, application, settings_of
from raycache.testing.inject import engines, kill_rank, wait_for

SIZES = ["64x64", "128x64", "96x96", "128x128", "160x96"]
CACHES: list[dict[str, object]] = [
    {"type": "none"},
    {"type": "FBCache", "warmup_steps": 2},
    {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
    {"type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
]
SETTLED = 50


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    jobs: int = typer.Option(500, help="how many"),
    kill_every: int = typer.Option(100, help="kill a rank after this many jobs; 0 = never"),
    cancel_every: int = typer.Option(10, help="the client of every Nth job leaves early"),
    tiny: bool = typer.Option(True, help="use a model of 2 + 4 blocks instead of the configured one"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    settings = settings_of(config, tiny, reliability={"max_restarts": 99})
    chance = random.Random(0)
    kinds = itertools.cycle([(size, cache) for cache in CACHES for size in SIZES])
    outcomes: Counter[str] = Counter()
    memory: dict[int, list[int]] = defaultdict(list)
    began, kills = time.monotonic(), 0
    with application(settings) as url, ThreadPoolExecutor(2) as pool:
        for number in track(range(jobs), description="jobs"):
            size, cache = next(kinds)
            body = {"prompt": f"image {number}", "size": size, "cache": cache, "seed": number, "n": 1 + number % 2}
            leaves = bool(cancel_every) and number % cancel_every == cancel_every - 1
            job = pool.submit(
                _job, url, {**body, "num_inference_steps": 60 if leaves else chance.randint(3, 8)}, leaves
            )
            if kill_every and number % kill_every == kill_every - 1:
                kill_rank(url, rank=kills % settings.parallel.ranks_per_replica)
                kills += 1
            outcomes[job.result()] += 1
            for rank in engines(url)[0]["gang"]["ranks"]:
                if "memory" in rank:
                    memory[rank["pid"]].append(rank["memory"])
        wait_for(lambda: engines(url)[0]["ready"], 120)
        restarts = engines(url)[0]["gang"]["restarts"]
    growth = {pid: max(seen[SETTLED:]) / seen[SETTLED] - 1 for pid, seen in memory.items() if len(seen) > SETTLED + 10}
    rows = [
        ["jobs", str(jobs)],
        *([f"answered {name}", str(count)] for name, count in sorted(outcomes.items())),
        ["ranks killed, gang restarts", f"{kills}, {restarts}"],
        ["rank processes watched beyond their 50th job", str(len(growth))],
        ["largest growth of resident memory from there on", f"{100 * max(growth.values(), default=0):.1f} %"],
        ["resident memory of a rank at the end, MB", ", ".join(f"{seen[-1] / 1e6:.0f}" for seen in memory.values())],
        ["seconds", f"{time.monotonic() - began:.0f}"],
    ]
    title = f"{config.name}{', tiny model' if tiny else ''}, {settings.parallel.ranks_per_replica} ranks; {machine()}"
    show_table(title, ["what", "value"], rows, out)


def _job(url: str, body: dict[str, object], leaves: bool) -> str:
    try:
        reply = httpx.post(url + PATH, json=body, timeout=0.2 if leaves else 300)
    except httpx.TimeoutException:
        return "never: the client left" if leaves else "never: LOST"
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: LOST"
    return str(reply.status_code)


if __name__ == "__main__":
    typer.run(main)
