"""Queries of the Grafana dashboard, for tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["expressions", "queried"]

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "raycache.json"


def expressions() -> list[str]:
    """PromQL of all panels, including Grafana's variables."""
    return [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]


def queried() -> set[str]:
    """Every metric name in the dashboard's queries and variables."""
    variables = [str(variable["query"]) for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]]
    return {name for text in (*expressions(), *variables) for name in re.findall(r"\bray_\w+", text)}
