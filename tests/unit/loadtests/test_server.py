"""Reading the server's side of a run."""

from __future__ import annotations

from pathlib import Path

from loadtests.server import METRICS, address, scrape
from raycache.reference import metrics_table

PAGE = """# HELP ray_raycache_requests_total Requests by outcome
ray_raycache_requests_total{Component="core",cause="",outcome="done",replica="a"} 4.0
ray_raycache_requests_total{Component="core",cause="",outcome="done",replica="b"} 2.0
ray_raycache_requests_total{Component="core",cause="queue_full",outcome="refused",replica="a"} 9.0
ray_raycache_images_total{method="DBCache",size="other"} 7.0
ray_raycache_stage_seconds_total{stage="queue"} 1.5
ray_raycache_stage_seconds_total{stage="denoise"} 2.5e+01
"""


def test_counters_are_summed_over_replicas(tmp_path):
    page = tmp_path / "metrics"
    page.write_text(PAGE)
    seen = scrape(page.as_uri())
    assert (seen["done"], seen["images"], seen["queue_seconds"], seen["denoise_seconds"]) == (6.0, 7.0, 1.5, 25.0)
    assert seen["restarts"] == 0.0


def test_what_is_read_is_exported():
    table = metrics_table()
    for pattern in METRICS.values():
        name, _, _ = pattern.partition("\\{")
        assert f"`{name}`" in table


def test_the_address_is_the_configs():
    root = Path(__file__).parents[3]
    assert address(root / "serve_configs" / "laptop_dbcache.yaml") == "http://127.0.0.1:8000"
