"""The dashboard's queries are PromQL over metrics that exist, by labels that they have."""

from __future__ import annotations

import json
import re
from itertools import combinations

import promql_parser
import pytest
from ray.serve.metrics import Histogram

from raycache.metric_specs import Spec
from raycache.metrics import SPECS, Metrics
from tests.helpers.dashboard import DASHBOARD, expressions, queried

#: What Serve adds inside a replica.
SERVES = {"application", "deployment", "replica"}


def spec_of(name: str) -> Spec:
    """The metric behind a series' name."""
    specs = {f"ray_{spec.name}": spec for spec in SPECS}
    parts = {f"{name}_{part}": spec for name, spec in specs.items() for part in ("bucket", "sum", "count")}
    return (specs | {name: spec for name, spec in parts.items() if spec.kind is Histogram})[name]


@pytest.mark.parametrize("expr", expressions())
def test_a_query_can_be_asked(expr: str):
    promql_parser.parse(re.sub(r"\$\w+", ".*", expr))
    named = [spec_of(name) for name in re.findall(r"\bray_\w+", expr)]
    labels = {"le", *SERVES}.union(*(spec.labels for spec in named))
    for used in re.findall(r"by \(([^)]*)\)", expr):
        assert set(used.split(", ")) <= labels
    engines = {f"ray_{spec.name}" for spec in Metrics.specs}
    for name, matchers in re.findall(r"\b(ray_\w+)\{([^}]*)\}", expr):
        wanted = ['application=~"$application"']
        if f"ray_{spec_of(name).name}" in engines:
            wanted.append('deployment=~"$engines"')
        assert matchers.split(", ") == wanted, "what is chosen above holds for every panel"


def test_every_metric_of_kept_jobs_is_plotted():
    assert {spec_of(name).name for name in queried()} >= {
        spec.name for spec in SPECS if spec.name.startswith("raycache_stored_")
    }


def test_panels_do_not_lie_on_each_other():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
