"""What Ray exports, and the dashboard that plots it: every name it queries is there after a day's worth of events."""

from __future__ import annotations

from pathlib import Path

import httpx

from raycache.testing.inject import wait_for
from raycache.testing.planned_faults import PlannedFault
from tests.helpers.asking import ASK, URL, scraped
from tests.helpers.dashboard import queried


def test_the_dashboard_queries_what_is_exported(flux: str, tmp_path: Path):
    def ask(**fields: object) -> int:
        return httpx.post(flux + URL, json={**ASK, **fields}, timeout=240).status_code

    assert ask() == 200
    assert ask(prompt=PlannedFault(kind="nan", step=2).prompt()) == 200
    assert ask(prompt=PlannedFault(kind="raise", at="decode").prompt()) == 500
    assert ask(prompt=PlannedFault(kind="kill", rank=1, step=2, once=str(tmp_path / "killed")).prompt()) == 200
    assert len(queried()) > 20
    plotted = queried() - {"ray_raycache_rerouted_total"}  # takes an engine's death: in `faults/test_service_faults.py`
    plotted = {name for name in plotted if "_stored_" not in name}  # takes a store: in `test_kept_jobs.py`
    wait_for(lambda: plotted <= set(scraped()), 120, every_s=1.0)
    names = scraped()
    for name in plotted:
        applications = {sample.labels.get("application") for sample in names[name]}
        assert "flux" in applications, "the dashboard selects by application"
    assert any(sample.labels["rank"].isdigit() for sample in names["ray_raycache_rank_memory_bytes"])
