"""The command: what a scenario runs with, and what it writes and prints. The service is replaced here."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import gevent.monkey
import pytest
from typer.testing import CliRunner

from loadtests.drive import Run, Scenario
from loadtests.records import Record
from loadtests.steps import Level


@pytest.fixture(scope="module")
def running():
    """The module, whose import would make the sockets of this process cooperative."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gevent.monkey, "patch_all", lambda: None)
        return importlib.import_module("loadtests.run")


def record(intended: float, outcome: str = "done", kind: int = 0, status: int = 200) -> Record:
    return Record(kind, 0, intended, sent=intended, ended=intended + 1.0, outcome=outcome, status=status, images=1)


@pytest.fixture
def service(running, monkeypatch, tmp_path):
    """Runs the command; `records` are those of the run, `given` what :func:`drive` was called with."""
    state = SimpleNamespace(
        given={},
        scraped=iter(()),
        records=[record(t) for t in range(10)],
        run=Run(offering=10.0, length=20.0),
    )

    def drive(url, scenario, plan, **options):
        state.given = {"url": url, "scenario": scenario, "plan": plan, **options}
        plan.recorder.records.extend(state.records)
        return state.run

    def command(*arguments: str) -> SimpleNamespace:
        out = tmp_path / "runs"
        app = running.typer.Typer()
        app.command()(running.main)
        result = CliRunner().invoke(app, [*arguments, "--host", "http://there:1/", "--out", str(out)])
        folders = list(out.iterdir()) if out.exists() else []
        results = json.loads((folders[0] / "results.json").read_text()) if folders and result.exit_code < 2 else {}
        return SimpleNamespace(code=result.exit_code, output=result.output, folders=folders, results=results)

    monkeypatch.setattr(running, "drive", drive)
    monkeypatch.setattr(running, "wait_ready", lambda url, timeout: None)
    monkeypatch.setattr(running, "sizes", lambda url: (2, 4))
    monkeypatch.setattr(running, "scrape", lambda urls: next(state.scraped) if urls else {})
    monkeypatch.setattr(running, "service", lambda url, config: {"version": "1", "models": [], "config": None})
    monkeypatch.setattr(running, "write_report", lambda path, *rest: path.write_text("report"))
    state.command = command
    return state


def test_rates_are_divided_by_the_length_of_the_run_and_the_offered_one_by_the_time_of_sending(service):
    results = service.command("open").results
    assert results["seconds"] == 20.0
    assert results["offered"] == {"seconds": 10.0, "per_second": 1.0}
    assert results["goodput"]["per_second"] == 0.5
    assert results["images"]["per_rank_per_minute"] == 60 * 10 / 20 / 4


def test_results_have_kinds_and_faults(service):
    service.run.faults.append({"at": 3.0, "what": "SIGKILL of rank 0"})
    service.records[0].kind = 1
    results = service.command("open").results
    assert [row["requests"] for row in results["kinds"]] == [9, 1]
    assert results["faults"] == [{"at": 3.0, "what": "SIGKILL of rank 0"}]
    assert "steps" not in results


def test_a_step_run_names_the_highest_rate_that_held(service):
    service.run.levels = [Level(0.0, 4.0, 1.0), Level(4.0, 8.0, 2.0), Level(8.0, 10.0, 3.0)]
    service.records[5] = record(5, "refused", status=429)
    results = service.command("step").results
    assert [(row["rate"], row["held"]) for row in results["steps"]] == [(1.0, True), (2.0, False), (3.0, True)]
    assert results["highest_held"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "kill", "abandonment"),
    [
        (("open",), None, 0.0),
        (("soak",), 60.0, 0.3),
        (("soak", "--kill-every", "5", "--abandonment", "0"), 5.0, 0.0),
        (("burst", "--kill-every", "7"), 7.0, 0.0),
    ],
)
def test_only_a_soak_kills_ranks_and_hangs_up_by_itself(service, arguments, kill, abandonment):
    assert service.command(*arguments).code == 0
    assert service.given["scenario"] is Scenario(arguments[0])
    assert service.given["kill"] == kill
    assert service.given["plan"].abandonment == abandonment
    assert service.given["url"] == "http://there:1"


@pytest.mark.parametrize(
    ("outcome", "status", "code"), [("wrong", 200, 1), ("failed", 500, 1), ("failed", 400, 0), ("refused", 429, 0)]
)
def test_a_wrong_image_or_a_lost_job_is_an_error(service, outcome, status, code):
    service.records.append(record(3, outcome, status=status))
    result = service.command("open")
    assert result.code == code
    assert len((result.folders[0] / "requests.jsonl").read_text().splitlines()) == 11


def test_the_comparison_waits_until_the_servers_counters_are_complete(service, running, monkeypatch):
    monkeypatch.setattr(running, "gevent", SimpleNamespace(sleep=lambda seconds: None))
    before = {"done": 5.0, "images": 5.0, "queue_seconds": 0.0, "denoise_seconds": 0.0}
    late = before | {"done": 9.0}
    service.scraped = iter([before, late, before | {"done": 15.0, "images": 15.0}])
    rows = service.command("open", "--metrics-url", "http://there:2/metrics").results["agreement"]
    assert rows["done"] == {"client": 10.0, "server": 10.0, "off": 0.0}


def test_without_metrics_it_says_that_nothing_is_compared(service):
    result = service.command("open")
    assert "--metrics-url" in result.output
    assert "agreement" not in result.results


def test_an_unusable_mix_is_refused_before_anything_runs(service, tmp_path):
    (path := tmp_path / "mix.yaml").write_text("entries: []")
    result = service.command("open", "--mix", str(path))
    assert result.code == 2
    assert not result.folders
    assert not service.given
