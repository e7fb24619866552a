"""Run a scenario against the service and write its results.

    python -m loadtests.run [open|closed|step|burst|soak] [--host URL] [--seconds 120] [--rate 0.25]

Without ``--host`` it starts ``serve run`` on ``--config`` and stops it afterwards. The folder ``runs/<name>`` then has
``report.html``, ``results.json``, ``requests.jsonl`` and the server's log.
If the service needs a key, it is read from the environment variable ``RAYCACHE_API_KEY``.
"""

from __future__ import annotations

# First, because it makes sockets and locks cooperative before anything else uses one.
import gevent.monkey

gevent.monkey.patch_all()

import contextlib  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from datetime import datetime  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import httpx  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from loadtests.drive import Run, Scenario, drive  # noqa: E402
from loadtests.mix import Mix, load_mix  # noqa: E402
from loadtests.report import write_report  # noqa: E402
from loadtests.server import address, metrics_urls, scrape, service, serving, sizes, wait_ready  # noqa: E402
from loadtests.steps import highest_held, step_rows  # noqa: E402
from loadtests.summary import agreement, by_kind, summarize  # noqa: E402
from loadtests.users import Plan  # noqa: E402

#: Ray exports metrics every 5 to 10 seconds.
_METRICS_S = 45.0


def main(
    scenario: Scenario = typer.Argument(Scenario.open),
    host: str | None = typer.Option(None, help="a running service; default: start one"),
    config: Path = typer.Option(Path("serve_configs/laptop_dbcache.yaml"), help="configuration to start"),
    seconds: float = typer.Option(120.0, min=1, help="length of the run"),
    rate: float = typer.Option(0.2, min=0.001, help="requests per second (open, step, burst, soak)"),
    users: int = typer.Option(8, min=1, help="clients (closed)"),
    deadline: float = typer.Option(30.0, min=0.1, help="seconds within which an answer is good"),
    abandonment: float | None = typer.Option(None, min=0, max=1, help="share of clients that hang up [soak: 0.3]"),
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
        said = service(url, None if host else config)
        run = drive(url, scenario, plan, seconds=seconds, rate=rate, users=users, deadline=deadline, kill=kill_every)
        results = {**_results(plan, run, scenario, deadline, engines, ranks), "service": said}
        if metrics:
            console.print("comparing with the server's metrics")
            try:
                results["agreement"] = _compare(plan, metrics, before)
            except (httpx.HTTPError, ValueError) as error:  # the answers are still worth keeping
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


def _results(plan: Plan, run: Run, scenario: Scenario, deadline: float, engines: int, ranks: int) -> dict[str, Any]:
    records = plan.recorder.records
    results = {
        **summarize(records, deadline=deadline, length=run.length, offering=run.offering, engines=engines, ranks=ranks),
        "kinds": by_kind(records, plan.mix.kinds, deadline),
        "faults": run.faults,
    }
    if scenario is Scenario.step:
        results["steps"] = step_rows(records, run.levels, deadline)
        results["highest_held"] = highest_held(results["steps"])
    return results


def _write(folder: Path, about: str, results: dict[str, Any], plan: Plan, console: Console) -> None:
    """Write the run's files and print the most important numbers."""
    plan.recorder.write(folder / "requests.jsonl")
    summary = {"name": folder.name, "about": about, **results}
    (folder / "results.json").write_text(json.dumps(summary, indent=2) + "\n")
    write_report(folder / "report.html", folder.name, about, results, plan.recorder.records)
    told = ("outcomes", "latency", "queue", "goodput", "gang_busy", "lost", "highest_held")
    console.print_json(data={key: results[key] for key in told if key in results})
    console.print(f"{folder / 'report.html'}")


def _compare(plan: Plan, metrics: Sequence[str], before: dict[str, float]) -> dict[str, Any]:
    """The agreement once the server's counters no longer change."""
    end, rows = time.monotonic() + _METRICS_S, {}
    while time.monotonic() < end:
        rows = agreement(plan.recorder.records, before, scrape(metrics))
        if all(row["off"] < 0.02 for row in rows.values()):
            break
        gevent.sleep(2)
    return rows


if __name__ == "__main__":
    typer.run(main)
