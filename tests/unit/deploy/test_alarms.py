"""Alarms over series that are there, that begin with the fault, and that are not there at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import promql_parser
import pytest
import yaml

from raycache.reference import metrics_table
from tests.helpers.promql import Series, fires

ROOT = Path(__file__).parents[3]
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "raycache.rules.yaml").read_text())
ALARMS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
NOW, MINUTE, DAY = 100_000.0, 60.0, 86_400.0
FAULT = NOW - 12 * MINUTE  # when things go wrong

Value = Callable[[float], float | None]


def always(value: float) -> Value:
    return lambda time: value


def since(fault: float, value: float, before: float | None = None) -> Value:
    """``before`` until the fault; None = no series."""
    return lambda time: value if time >= fault else before


def growing(per_minute: float, fault: float = FAULT, before: float | None = None) -> Value:
    return lambda time: per_minute * (time - fault) / MINUTE + (before or 0) if time >= fault else before


def series(name: str, value: Value, **labels: str) -> Series:
    return Series(f"ray_raycache_{name}", {"application": "flux", **labels}, value)


def ready(value: Value, model: str = "flux", **labels: str) -> Series:
    """What an ingress tells of a model."""
    return series("model_ready", value, model=model, **labels)


#: What is scraped of a service that works, and has seen a fault or two in its life.
SOUND = [
    series("model_ready", always(1), model="flux", deployment="Ingress"),
    series("engine_ready", always(1), deployment="Engine"),
    series("predicted_queue_seconds", always(3)),
    series("requests_total", growing(10, fault=0), outcome="done", cause=""),
    series("requests_total", always(4), outcome="failed", cause="job_failed"),
    series("rank_restarts_total", always(3), cause="death"),
    series("non_finite_total", always(1), method="DBCache"),
    series("http_errors_total", growing(2, fault=0), status="400", code="invalid_value"),
    series("http_errors_total", always(5), status="503", code="not_ready"),
    series("rank_memory_bytes", lambda time: 10e9 + time, rank="0"),
    series("user_config_refused", always(0)),
    series("rank_uncompiled", always(0), deployment="Engine", rank="0"),
    series("rank_uncompiled", always(0), deployment="Engine", rank="1"),
]
#: The same service while all of its engines sleep on purpose.
ASLEEP = [one for one in SOUND if "model_ready" in one.name or "http" in one.name]
#: Its engines are gone, and their series with them; the ingress tells it.
NO_ENGINE = [ready(since(FAULT, 0, 1)), *(one for one in ASLEEP if "model_ready" not in one.name)]


def but(*changed: Series) -> list[Series]:
    """A sound service in which some series are different."""
    known = {(one.name, tuple(one.labels.items())) for one in changed}
    return [*(one for one in SOUND if (one.name, tuple(one.labels.items())) not in known), *changed]


def firing(scraped: list[Series]) -> set[str]:
    return {name for name, rule in ALARMS.items() if fires(rule["expr"], _seconds(rule.get("for")), scraped, NOW)}


CASES = {
    "sound": (SOUND, set()),
    "asleep on purpose": (ASLEEP, set()),
    "nothing is scraped at all": ([], {"RaycacheNotReady"}),
    "every series ended": ([ready(lambda t: 1 if t < FAULT else None)], {"RaycacheNotReady"}),
    "no engine, so no series of one": (NO_ENGINE, {"RaycacheNotReady"}),
    "never had an engine": ([ready(always(0))], {"RaycacheNotReady"}),
    "of two applications one is down": (
        [*SOUND, Series("ray_raycache_model_ready", {"application": "other", "model": "flux"}, always(0))],
        {"RaycacheNotReady"},
    ),
    "of two models one is down": ([*SOUND, ready(since(FAULT, 0, 1), model="klein")], {"RaycacheNotReady"}),
    "a gang is rebuilt for two minutes": (but(ready(since(NOW - 2 * MINUTE, 0, 1), deployment="Ingress")), set()),
    "the first fault of an engine's life, three times": (
        but(series("rank_restarts_total", since(FAULT, 3), cause="hang", replica="new")),
        {"RaycacheRestarts"},
    ),
    "one restart is no alarm": (but(series("rank_restarts_total", since(FAULT, 1), cause="hang")), set()),
    "three more restarts": (
        but(series("rank_restarts_total", since(FAULT, 6, 3), cause="death")),
        {"RaycacheRestarts"},
    ),
    "the first job that fails": (
        but(series("requests_total", since(FAULT, 1), outcome="failed", cause="other")),
        {"RaycacheFailing"},
    ),
    "one more job fails": (
        but(series("requests_total", since(FAULT, 5, 4), outcome="failed", cause="job_failed")),
        {"RaycacheFailing"},
    ),
    "it failed an hour ago": (
        but(series("requests_total", since(NOW - 60 * MINUTE, 1), outcome="failed", cause="other")),
        set(),
    ),
    "the first difference that is not finite": (
        but(series("non_finite_total", since(FAULT, 1), method="DBPrune")),
        {"RaycacheNotFinite"},
    ),
    "refusing": (
        but(series("requests_total", growing(5, NOW - 30 * MINUTE), outcome="refused", cause="queue_full")),
        {"RaycacheRefusing"},
    ),
    "errors while there is no engine that counts": (
        [*NO_ENGINE[:1], series("http_errors_total", growing(9), status="503", code="not_ready")],
        {"RaycacheNotReady", "RaycacheServerErrors"},
    ),
    "waiting": (but(series("predicted_queue_seconds", since(FAULT, 40, 3))), {"RaycacheWaiting"}),
    "a rank has grown": (
        but(series("rank_memory_bytes", lambda t: 10e9 if t < NOW - DAY + 2 * 3600 else 13e9, rank="0")),
        {"RaycacheMemory"},
    ),
    "an illegal user_config": (but(series("user_config_refused", since(FAULT, 1, 0))), {"RaycacheUserConfigRefused"}),
    "of two ranks one cannot compile": (
        but(series("rank_uncompiled", since(FAULT, 1, 0), deployment="Engine", rank="1")),
        {"RaycacheUncompiled"},
    ),
    "a new rank's first report is that it cannot compile": (
        but(series("rank_uncompiled", since(FAULT, 1), deployment="Other", rank="0")),
        {"RaycacheUncompiled"},
    ),
    "a rank ran uncompiled until it was replaced": (
        but(series("rank_uncompiled", lambda t: float(t < NOW - 2 * MINUTE), deployment="Engine", rank="1")),
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fires(case: str):
    scraped, expected = CASES[case]
    assert firing(scraped) == expected


def test_each_alarm_fires_in_some_case():
    assert set().union(*(expected for _, expected in CASES.values())) == set(ALARMS)


def test_the_alarm_of_old_was_silent_without_engines():
    """That the evaluator tells the difference."""
    old = "max(ray_raycache_engine_ready) < 1"
    assert fires(old, 300, [series("engine_ready", always(0))], NOW)
    assert not fires(old, 300, NO_ENGINE, NOW)
    assert not fires(
        "increase(ray_raycache_requests_total[15m]) > 0", 0, [series("requests_total", since(FAULT, 1))], NOW
    )


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_reads_metrics_that_exist_and_is_explained(name: str):
    expr, hold = ALARMS[name]["expr"], ALARMS[name].get("for")
    assert set(re.findall(r"ray_\w+", expr)) <= set(re.findall(r"`(ray_\w+)`", metrics_table()))
    (row,) = [line for line in _rows() if line[0] == name]
    assert promql_parser.parse(row[1].strip("`")).prettify() == promql_parser.parse(expr).prettify()
    assert row[2] == (hold or "at once")


def test_the_document_has_no_other():
    assert {row[0] for row in _rows()} == set(ALARMS)


def test_kubernetes_gets_the_same():
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "monitoring.yaml").read_text()))
    (rule,) = [document for document in documents if document["kind"] == "PrometheusRule"]
    assert rule["spec"] == RULES


def _rows() -> list[list[str]]:
    text = (ROOT / "docs" / "operating.md").read_text().split("## Alarms")[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if "| Raycache" in line
    ]


def _seconds(duration: str | None) -> float:
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
    return float(duration[:-1]) * units[duration[-1]] if duration else 0.0
