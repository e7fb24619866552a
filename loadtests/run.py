"""Run a scenario against the service and write what came of it.

    python -m loadtests.run [open|closed|step|burst|soak] [--host URL] [--seconds 120] [--rate 0.25]

Without ``--host`` it starts ``serve run`` on ``--config`` and stops it afterwards. The folder ``runs/<name>`` then has
``report.html``, ``results.json``, ``requests.jsonl`` and the server's log.
A service with keys is sent the one in the environment's ``RAYCACHE_API_KEY``.
"""

from __future__ import annotations

# First: it makes sockets and locks cooperative before anything else holds one.
import gevent.monkey

gevent.monkey.patch_all()

import contextlib  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from datetime import datetime  # noqa: E402
from enum import StrEnum  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import httpx  # noqa: E402
import typer  # noqa: E402
from locust import LoadTestShape  # noqa: E402
from locust.env import Environment  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

from loadtests.mix import Mix, load_mix  # noqa: E402
from loadtests.report import write_report  # noqa: E402
from loadtests.server import address, metrics_urls, scrape, serving, sizes, wait_ready  # noqa: E402
from loadtests.shapes import Burst, Constant, Steps  # noqa: E402
from loadtests.summary import agreement, summarize  # noqa: E402
from loadtests.users import ClosedLoop, OpenLoop, Plan  # noqa: E402
from raycache.testing.inject import kill_rank  # noqa: E402

#: Ray exports metrics every 5 to 10 seconds.
_METRICS_S = 45.0


class Scenario(StrEnum):
    """open: Poisson arrivals; closed: users that wait; step: the rate climbs until the goal is missed; burst: short
    floods; soak: open, long, with clients that leave and ranks that die."""

    open = "open"
    closed = "closed"
    step = "step"
    burst = "burst"
    soak = "soak"


def main(
    scenario: Scenario = typer.Argument(Scenario.open),
    host: str | None = typer.Option(None, help="a running service; default: start one"),
    config: Path = typer.Option(Path("serve_configs/laptop_dbcache.yaml"), help="what to start"),
    seconds: float = typer.Option(120.0, min=1, help="length of the run"),
    rate: float = typer.Option(0.2, min=0.001, help="requests a second (open, step, burst, soak)"),
    users: int = typer.Option(8, min=1, help="clients (closed)"),
    deadline: float = typer.Option(30.0, min=0.1, help="seconds within which an answer is good"),
    abandonment: float | None = typer.Option(None, min=0, max=1, help="share of clients that leave [soak: 0.3]"),
    kill_every: float | None = typer.Option(None, min=1, help="SIGKILL a rank every so many seconds [soak: 60]"),
    mix: Path = typer.Option(Path(__file__).with_name("mix.yaml"), help="weighted requests"),
    metrics_url: list[str] = typer.Option(
        [],
        help="http://node:port/metrics of the service, once for each of its nodes [of a service started here: found]",
    ),
    seed: int = typer.Option(0, help="of arrivals and choices"),
    out: Path = typer.Option(Path("runs"), help="where the run's folder goes"),
) -> None:
    """Run and report. Ends with code 1 if an answer was wrong or an accepted job was lost."""
    soak = scenario is Scenario.soak
    abandonment = abandonment if abandonment is not None else 0.3 * soak
    plan = Plan(_requests(mix), abandonment=abandonment, seed=seed)
    kill_every = kill_every or (60.0 if soak else None)
    folder = out / f"{scenario.value}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True)
    url = (host or address(config)).rstrip("/")
    console = Console()
    console.print(f"waiting for {url}/readyz")
    with contextlib.nullcontext() if host else serving(config, folder / "server.log") as server:
        wait_ready(url, 30.0)
        engines, ranks = sizes(url)
        metrics = metrics_url or ([] if server is None else metrics_urls(server.pid))
        before = scrape(metrics)
        if not metrics:
            console.print("no comparison with the server's metrics: name them with --metrics-url")
        faults = _drive(
            url, scenario, plan, seconds=seconds, rate=rate, users=users, deadline=deadline, kill=kill_every
        )
        numbers = summarize(plan.recorder.records, deadline=deadline, engines=engines, ranks=ranks)
        results = {**numbers, "faults": faults}
        if metrics:
            console.print("comparing with the server's metrics")
            try:
                results["agreement"] = _compare(plan, metrics, before)
            except (httpx.HTTPError, ValueError) as error:  # the answers are worth keeping all the same
                console.print(f"[red]no comparison: {metrics} does not answer: {error}")
    about = f"{host or config.name}, {engines} engine(s), {ranks} rank(s), {seconds:g} s; seed {seed}"
    _write(folder, about, results, plan, console)
    if results["outcomes"]["wrong"] or results["lost"]:
        raise typer.Exit(1)


def _requests(path: Path) -> Mix:
    try:
        return load_mix(path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mix") from None


def _write(folder: Path, about: str, results: dict[str, Any], plan: Plan, console: Console) -> None:
    """The files of the run, and the numbers that matter most."""
    plan.recorder.write(folder / "requests.jsonl")
    summary = {"name": folder.name, "about": about, **results}
    (folder / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(folder / "report.html", folder.name, about, results, plan.recorder.records)
    console.print_json(
        data={key: results[key] for key in ("outcomes", "latency", "queue", "goodput", "gang_busy", "lost")}
    )
    console.print(f"{folder / 'report.html'}")


class _Environment(Environment):
    """Locust's, and what its users do."""

    plan: Plan


def _drive(
    url: str,
    scenario: Scenario,
    plan: Plan,
    *,
    seconds: float,
    rate: float,
    users: int,
    deadline: float,
    kill: float | None,
) -> list[dict[str, Any]]:
    """Run locust to the end of the shape and of every request; the faults that were made on the way."""
    closed = scenario is Scenario.closed
    # At least four sources, so that the mix of users is one; their rates add up to the rate asked for.
    sources = users if closed else max(4, round(rate / plan.rate_per_user))
    plan.rate_per_user = rate / sources
    environment = _Environment(
        user_classes=[ClosedLoop if closed else OpenLoop],
        host=url,
        shape_class=_shape(scenario, plan, sources, seconds, deadline),
        stop_timeout=plan.patience,
    )
    environment.plan = plan
    runner = environment.create_local_runner()
    plan.began = time.monotonic()
    faults: list[dict[str, Any]] = []
    runner.start_shape()
    shape = runner.shape_greenlet
    assert shape is not None  # it was started
    killer = gevent.spawn(_kill_ranks, url, kill, seconds, plan, faults) if kill else None
    with Progress() as progress:
        bar = progress.add_task(scenario.value, total=seconds)
        while not shape.ready() or len(plan.under_way):
            passed = time.monotonic() - plan.began
            progress.update(bar, completed=min(passed, seconds), description=f"{len(plan.recorder.records)} answers")
            gevent.sleep(0.5)
    if killer:
        killer.kill()
    runner.quit()
    return faults


def _shape(scenario: Scenario, plan: Plan, users: int, seconds: float, deadline: float) -> LoadTestShape:
    if scenario is Scenario.step:
        return Steps(users, seconds / 6, seconds, lambda window: _missed(plan, window, deadline))
    if scenario is Scenario.burst:
        return Burst(users, 10, seconds / 2, seconds / 10, seconds)
    return Constant(users, seconds)


def _missed(plan: Plan, window: float, deadline: float) -> bool:
    """Whether, of what ended in the last ``window`` seconds, more than 5 % was late or got no picture."""
    since = time.monotonic() - plan.began - window
    recent = [r for r in plan.recorder.records if r.ended >= since and r.outcome != "abandoned"]
    return sum(r.outcome != "done" or r.latency > deadline for r in recent) > 0.05 * len(recent)


def _kill_ranks(url: str, every: float, seconds: float, plan: Plan, faults: list[dict[str, Any]]) -> None:
    """SIGKILL rank 0, 1, … in turn, as long as the run lasts."""
    number = 0
    while time.monotonic() - plan.began + every < seconds:
        gevent.sleep(every)
        engines, ranks = sizes(url)
        try:
            rank = number % (ranks // engines)
            kill_rank(url, rank, engine=number % engines)
        except (ZeroDivisionError, KeyError, IndexError, ProcessLookupError):
            continue  # it is being rebuilt already
        faults.append({"at": round(time.monotonic() - plan.began, 2), "what": f"SIGKILL of rank {rank}"})
        number += 1


def _compare(plan: Plan, metrics: Sequence[str], before: dict[str, float]) -> dict[str, Any]:
    """The agreement once the server's counters stand still."""
    end, rows = time.monotonic() + _METRICS_S, {}
    while time.monotonic() < end:
        rows = agreement(plan.recorder.records, before, scrape(metrics))
        if all(row["off"] < 0.02 for row in rows.values()):
            break
        gevent.sleep(2)
    return rows


if __name__ == "__main__":
    typer.run(main)
