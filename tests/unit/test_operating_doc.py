"""docs/operating.md says every setting and every metric, as they are now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raycache.metrics import IngressMetrics, Metrics
from raycache.reference import metrics_table, settings_table, updated

DOCUMENT = Path(__file__).parents[2] / "docs" / "operating.md"


def test_the_tables_are_up_to_date():
    text = DOCUMENT.read_text()
    assert updated(text) == text, "run: python -m raycache.reference docs/operating.md"


def test_every_setting_is_explained():
    for line in settings_table().splitlines()[2:]:
        path, kind, default, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
        assert kind, path
        assert default, path
        assert meaning, f"{path} has no description"


def test_every_metric_is_in_the_table(monkeypatch: pytest.MonkeyPatch):
    made = []
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"raycache.metrics.{kind}", lambda name, *a, **k: made.append(name))
    Metrics(), IngressMetrics()
    assert sorted(f"ray_{name}" for name in made) == sorted(
        re.findall(r"^\| `(ray_\w+)`", metrics_table(), re.MULTILINE)
    )


@pytest.mark.parametrize("name", re.findall(r"ray_raycache_\w+", DOCUMENT.read_text()))
def test_alarms_name_metrics_that_exist(name):
    known = set(re.findall(r"`(ray_\w+)`", metrics_table()))
    assert re.sub(r"_(sum|count|bucket)$", "", name) in known


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="settings"):
        updated("nothing here")
