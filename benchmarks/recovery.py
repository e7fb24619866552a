"""Injects faults, and measures the seconds until the client is answered and the next correct image is delivered.

    python -m benchmarks.recovery [--config serve_configs/laptop_two_ranks.yaml] [--out recovery.md]

Starts the real application with one engine, without and then with spare processes. For each fault, one job is running
(unless the fault hits an idle service) and three are queued behind it. Seconds from the fault: *detect* (the gang
noticed), *kill* (all old ranks are gone), *rebuild* (new processes have imported their libraries and formed a group),
*load* (model and warm-up images), *answer* (to the running job), *next image* (first one bit-equal to the reference).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from benchmarks.rebuild import settle
from benchmarks.report import machine, show_table
from benchmarks.serving import Answer, application, ask, settings_of
from raycache.settings import AppSettings
from raycache.testing.inject import engines, kill_engine, kill_ingress, kill_rank, wait_for
from raycache.testing.planned_faults import PlannedFault, enable_planned_faults

COLUMNS = [
    "fault",
    "spare processes",
    "detect",
    "kill",
    "rebuild",
    "load",
    "answer",
    "next image",
    "queued jobs answered 200",
]
QUEUED = 3

IN_A_JOB = {
    "rank 0 killed in step 3": PlannedFault(kind="kill", rank=0, step=3),
    "rank 1 killed in step 3": PlannedFault(kind="kill", rank=1, step=3),
    "rank 0 killed while decoding": PlannedFault(kind="kill", rank=0, at="decode"),
    "rank 1 raises in step 3": PlannedFault(kind="raise", rank=1, step=3),
    "rank 1 out of memory in step 3": PlannedFault(kind="oom", rank=1, step=3),
    "rank 1 stopped (SIGSTOP) in step 3": PlannedFault(kind="stop", rank=1, step=3),
    "rank 0 asleep in Python in step 3": PlannedFault(kind="sleep", rank=0, step=3),
}


def main(
    config: Path = typer.Option(Path("serve_configs/laptop_two_ranks.yaml"), help="the application's settings"),
    size: str = typer.Option("128x128", help="image size"),
    steps: int = typer.Option(12, help="denoising steps"),
    tiny: bool = typer.Option(False, help="use a model of 2 + 4 blocks instead of the configured one"),
    only: str = typer.Option("", help="only faults whose name contains this"),
    out: Path | None = typer.Option(None, help="also write the table here, as Markdown"),
) -> None:
    """Print the table."""
    rows: list[list[str]] = []
    enable_planned_faults()
    for spares in (False, True):
        settings = settings_of(
            config,
            tiny,
            # Images of jobs that share calls are not equal to the bit.
            parallel={"max_rows": 1, "spare_processes": spares},
            reliability={"max_restarts": 99},
            warmup=[{"size": size}],
        )
        for name, *cells in _faults(settings, {"size": size, "num_inference_steps": steps}, only):
            rows.append([name, "with" if spares else "without", *cells])
            Console().print(" | ".join(rows[-1]))
    order = [row[0] for row in rows]
    rows.sort(key=lambda row: order.index(row[0]))  # the two of a fault below each other
    title = f"{config.name}, {size}, {steps} steps, {settings.parallel.ranks_per_replica} ranks; seconds; {machine()}"
    show_table(title, COLUMNS, rows, out)


def _faults(settings: AppSettings, body: dict[str, Any], only: str) -> Iterator[list[str]]:
    """What each fault whose name contains ``only`` cost."""
    with application(settings) as url, tempfile.TemporaryDirectory() as folder:
        reference = ask(url, **body).image
        for number, (name, plan) in enumerate(IN_A_JOB.items()):
            if only in name:
                settle()
                once = Path(folder) / f"{number}"
                yield [name, *_in_a_job(url, body, plan.model_copy(update={"once": str(once)}), once, reference)]
        for name, kill in {
            "rank 1 killed while idle": lambda: kill_rank(url, 1),
            "engine replica killed while idle": lambda: kill_engine(url),
            "ingress killed while idle": lambda: kill_ingress(url),
        }.items():
            if only in name:
                settle()
                yield [name, *_idle(url, body, kill, reference)]


def _in_a_job(url: str, body: dict[str, Any], plan: PlannedFault, once: Path, reference: str | None) -> list[str]:
    with ThreadPoolExecutor() as pool:
        wait_for(lambda: not any(engine["running"] for engine in engines(url)), 60)
        under: Future[Answer] = pool.submit(ask, url, prompt=plan.prompt(), **body)
        wait_for(lambda: any(engine["running"] for engine in engines(url)) or once.exists(), 60)
        queued = [pool.submit(ask, url, **body) for _ in range(QUEUED)]
        answers = [future.result() for future in queued]
        answer = under.result()
    at = once.stat().st_mtime
    return _row(url, at, answer, answers, reference)


def _idle(url: str, body: dict[str, Any], kill: Callable[[], float], reference: str | None) -> list[str]:
    restarts = _restarts(url)
    at = kill()
    answers: list[Answer] = []
    while not answers or answers[-1].status != 200:
        answers.append(ask(url, **body))
        time.sleep(0.1)
    lost = [f"{answer.status} at {answer.at - at:.1f}" for answer in answers[:-1] if answer.status != 503]
    row = _row(url, at, None, answers[-1:], reference, recovered=_restarts(url) > restarts)
    refused = len(answers) - 1 - len(lost)
    return [*row[:4], ", ".join([*lost, *([f"503 x {refused}"] if refused else [])]) or "-", row[5], "-"]


def _restarts(url: str) -> int:
    return sum(engine["gang"]["restarts"] for engine in engines(url))


def _recovery_since(url: str, at: float) -> dict[str, Any] | None:
    """The one that a fault at ``at`` made necessary, once all of it is known."""
    recovery: dict[str, Any] = engines(url)[0]["gang"]["last_recovery"]
    return recovery if recovery["noticed_at"] >= at and "warm-up" in recovery["stages"] else None


def _row(
    url: str, at: float, under: Answer | None, behind: list[Answer], reference: str | None, recovered: bool = True
) -> list[str]:
    good = [answer for answer in behind if answer.image is not None and answer.image == reference]
    if len(good) != len(behind):
        raise SystemExit(f"not every image is correct: {[(a.status, a.image == reference) for a in behind]}")
    times = ["-"] * 4
    if recovered:
        # The ingress learns of it a moment later than the image comes.
        recovery = wait_for(lambda: _recovery_since(url, at), 30)
        stages = recovery["stages"]
        rebuild = stages["processes"] + stages["rendezvous"] + stages["import"]
        load = sum(stages.values()) - rebuild
        seconds = (recovery["noticed_at"] - at, recovery["killed_s"], rebuild, load)
        times = [f"{value:.2f}" for value in seconds]
    answer = "-" if under is None else f"{under.at - at:.1f} ({under.status})"
    first = min(answer.at for answer in [*good, *([under] if under and under.status == 200 else [])])
    return [*times, answer, f"{first - at:.1f}", f"{len(good)} of {len(behind)}"]


if __name__ == "__main__":
    typer.run(main)
