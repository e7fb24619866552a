"""The documents say every setting, every metric and every module, as they are now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray.serve.metrics import Histogram

from cache_core import supported_models
from raycache.metrics import IngressMetrics, Metrics
from raycache.models.registry import FAMILIES, family_of
from raycache.models.roads import ROADS
from raycache.reference import metrics_table, service_table, settings_table, updated
from raycache.store_metrics import StoreMetrics

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = DOCS / "operating.md"


@pytest.mark.parametrize("name", ["operating.md", "requests.md", "design.md", "models.md", "../README.md"])
def test_the_tables_are_up_to_date(name: str):
    text = (DOCS / name).read_text()
    assert updated(text) == text, f"run: python -m raycache.reference docs/{name}"


def test_every_module_is_in_the_table():
    """A sentence each, none is missing, and none is told of that is gone."""
    lines = (DOCS / "design.md").read_text().splitlines()
    told = dict(line.strip("|").split(" | ", 1) for line in lines if line.startswith(("| `raycache", "| `cache_core")))
    told = {name.strip(" `"): words for name, words in told.items()}
    for package in ("raycache", "cache_core"):
        for path in (DOCS.parent / package).rglob("*.py"):
            name = path.relative_to(DOCS.parent)
            name = name.parent if name.stem == "__init__" else name
            assert len(told.pop(str(name)).split()) >= 2, name
    assert not told, "modules that are gone"


def test_every_transformer_has_a_row_with_its_tasks_and_way():
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in service_table().splitlines()[2:]]
    told = {row[1]: row for row in rows}
    assert sorted(told) == sorted(name for classes in supported_models().values() for name in classes)
    for name, (_, _, tasks, way, *_) in told.items():
        assert way == ROADS.get(name, "-")
        families = [family_of(pipeline) for pipeline in FAMILIES]
        known = {task for family in families if family.transformer == name for task in family.tasks}
        assert set(tasks.split(", ")) == (known or {"-"})
    assert told["FluxTransformer2DModel"][-1].startswith("transformer, 2 ranks, `Flux")


def test_every_setting_is_explained():
    for line in settings_table().splitlines()[2:]:
        path, kind, default, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
        assert kind, path
        assert default, path
        assert meaning, f"{path} has no description"


def test_every_metric_that_is_made_is_in_the_table():
    made = {**Metrics().made, **IngressMetrics().made, **StoreMetrics().made}
    assert re.findall(r"^\| `ray_(\w+)`", metrics_table(), re.MULTILINE) == list(made)


def test_a_metric_is_made_of_its_spec():
    spec, metric = Metrics.queue_seconds, Metrics().queue_seconds
    assert type(metric) is spec.kind is Histogram
    assert (metric.info["name"], metric.info["description"]) == ("raycache_queue_seconds", spec.help)
    assert metric.info["tag_keys"] == ("method",)
    assert metric.boundaries == list(spec.boundaries)
    assert Metrics().images is not Metrics().images, "an engine has its own"


@pytest.mark.parametrize("name", re.findall(r"ray_raycache_\w+", DOCUMENT.read_text()))
def test_alarms_name_metrics_that_exist(name):
    known = set(re.findall(r"`(ray_\w+)`", metrics_table()))
    assert re.sub(r"_(sum|count|bucket)$", "", name) in known


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="settings"):
        updated("nothing here")
