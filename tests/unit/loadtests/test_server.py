"""Reading the server's side of a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from ray.serve.metrics import Counter

from loadtests.server import METRICS, address, metrics_urls, scrape, service, serving
from raycache.metrics import SPECS
from raycache.testing.inject import readiness

PAGE = """# HELP ray_raycache_requests_total Requests by outcome
ray_raycache_requests_total{Component="core",cause="",outcome="done",replica="a"} 4.0
ray_raycache_requests_total{Component="core",cause="",outcome="done",replica="b"} 2.0
ray_raycache_requests_total{Component="core",cause="queue_full",outcome="refused",replica="a"} 9.0
ray_raycache_images_total{method="DBCache",size="other"} 7.0
ray_raycache_stage_seconds_total{stage="queue"} 1.5
ray_raycache_stage_seconds_total{stage="denoise"} 2.5e+01
"""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], str]:
    """Has one address answer with this text and status, and tells which."""

    def answers(text: str, status: int = 200) -> str:
        def get(url: str, timeout: float) -> httpx.Response:
            return httpx.Response(status, text=text, request=httpx.Request("GET", url))

        monkeypatch.setattr(httpx, "get", get)
        return "http://node:1/metrics"

    return answers


def test_counters_are_summed_over_replicas(page):
    seen = scrape([url := page(PAGE)])
    assert (seen["done"], seen["images"], seen["queue_seconds"], seen["denoise_seconds"]) == (6.0, 7.0, 1.5, 25.0)
    assert seen["restarts"] == 0.0
    assert scrape([url] * 2)["done"] == 12.0, "nodes are summed up"


def test_what_is_no_page_of_metrics_is_no_zero(page):
    with pytest.raises(httpx.HTTPError):
        scrape([page("", 503)])
    with pytest.raises(ValueError, match="name"):
        scrape([page("<html> nothing here </html>")])


def test_what_is_read_is_exported():
    """With labels that it has: a series that nobody makes would be zero, too."""
    exported = {f"ray_{spec.name}": spec for spec in SPECS}
    for name, labels in METRICS.values():
        assert exported[name].kind is Counter
        assert set(labels) <= set(exported[name].labels)


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [(200, '{"ready": true}', {"ready": True}), (503, '{"ready": false}', {"ready": False}), (404, "Path / not", {})],
)
def test_readiness_is_read_whatever_the_status(monkeypatch, status, text, said):
    transport = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
    monkeypatch.setattr("raycache.testing.inject._client", lambda: httpx.Client(transport=transport))
    assert readiness("http://here") == said


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], None]:
    """Has a service answer each path with this JSON, and all others with 404."""

    def answers(pages: dict[str, object]) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            page = pages.get(request.url.path)
            return httpx.Response(404) if page is None else httpx.Response(200, json=page)

        transport, client = httpx.MockTransport(answer), httpx.Client
        monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=transport, **options))

    return answers


def test_a_service_tells_its_version_models_and_config(told, tmp_path):
    (config := tmp_path / "c.yaml").write_text("applications: []\n")
    card = {"id": "demo", "ranks": 2, "defaults": {"size": "64x64"}, "limits": {}}
    told({"/v1/models": {"data": [card]}, "/openapi.json": {"info": {"version": "1.2.3"}}})
    assert service("http://here", config) == {
        "version": "1.2.3",
        "models": [{"id": "demo", "ranks": 2, "defaults": {"size": "64x64"}}],
        "config": {"path": str(config), "text": "applications: []\n"},
    }


def test_a_service_that_tells_nothing_is_tested_all_the_same(told):
    told({})
    assert service("http://here", None) == {"version": None, "models": [], "config": None}


def test_nobody_is_not_ready():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert readiness(f"http://127.0.0.1:{probe.getsockname()[1]}") == {}


def test_the_address_is_the_configs():
    root = Path(__file__).parents[3]
    assert address(root / "serve_configs" / "laptop_dbcache.yaml") == "http://127.0.0.1:8000"


def test_the_metrics_of_a_ray_that_was_not_started_here_must_be_named():
    with pytest.raises(RuntimeError, match="with --metrics-url, or do not use that Ray"):
        metrics_urls(os.getpid())


def test_what_is_started_does_not_hide_behind_what_is_there(tmp_path):
    """A run would be one of the other service."""
    config = tmp_path / "config.yaml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        config.write_text(f"http_options: {{host: 127.0.0.1, port: {other.getsockname()[1]}}}")
        with pytest.raises(RuntimeError, match="is in use: pass it as --host"), serving(config, tmp_path / "log"):
            pass


@pytest.mark.slow
def test_a_server_that_ends_is_not_waited_for(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config, log = tmp_path / "config.yaml", tmp_path / "log"
    config.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}\napplications: nonsense\n")
    with pytest.raises(RuntimeError, match=f"before it was ready; see {log}"), serving(config, log):
        pass
