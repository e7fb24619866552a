"""The server under test: started and stopped here unless one is running, and what it reports about itself."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from raycache.testing.inject import authorization, engines, readiness
from raycache.testing.serve_run import serve_run
from raycache.yaml_files import load_yaml

__all__ = ["METRICS", "address", "metrics_urls", "scrape", "service", "serving", "sizes", "wait_ready"]

#: What a run is compared with: a counter, and the labels of the series that are summed.
METRICS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "done": ("ray_raycache_requests_total", {"outcome": "done"}),
    "images": ("ray_raycache_images_total", {}),
    "queue_seconds": ("ray_raycache_stage_seconds_total", {"stage": "queue"}),
    "denoise_seconds": ("ray_raycache_stage_seconds_total", {"stage": "denoise"}),
    "restarts": ("ray_raycache_rank_restarts_total", {}),
    "retries": ("ray_raycache_retries_total", {}),
}


def address(config: Path) -> str:
    """The address at which the service of a ``serve run`` YAML listens.

    Raises:
        ValueError: it is not valid YAML; names the line. OSError: it cannot be read.
    """
    document = load_yaml(config, "serve config")
    if not isinstance(document, dict):
        raise ValueError(f"{config} is not a serve config: its fields are missing")
    http = document.get("http_options") or {}
    return f"http://{http.get('host', '127.0.0.1')}:{http.get('port', 8000)}"


@contextlib.contextmanager
def serving(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `serve run` on ``config`` and wait until it is ready; its output goes to ``log``. Stops it after the block.

    Raises:
        RuntimeError: the address is in use, or the server ended by itself. TimeoutError: it does not become ready.
    """
    url = address(config)
    parts = httpx.URL(url)
    with contextlib.suppress(OSError), socket.create_connection((parts.host, parts.port), 5):
        raise RuntimeError(f"{url} is in use: pass it as --host to test that service, or use another port in --config")
    with serve_run(config, log) as process:
        wait_ready(url, 600.0, process, log)
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"`serve run` ended with code {process.returncode} during the run; see {log}")


def wait_ready(
    url: str, timeout_s: float, process: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Wait until a warm gang serves at ``url``.

    Raises:
        TimeoutError: with the last answer of ``/readyz``. RuntimeError: ``process``, which should serve it, has ended.
    """
    end = time.monotonic() + timeout_s
    while not (said := readiness(url)).get("ready"):
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"`serve run` ended with code {process.returncode} before it was ready; see {log}")
        if time.monotonic() > end:
            raise TimeoutError(f"{url} was not ready within {timeout_s:g} s: {said.get('reason') or 'no answer'}")
        time.sleep(0.5)


def sizes(url: str) -> tuple[int, int]:
    """The number of engines, and of ranks in all of them."""
    all_engines = engines(url)
    return len(all_engines), sum(len(engine["gang"]["ranks"]) for engine in all_engines)


def service(url: str, config: Path | None) -> dict[str, Any]:
    """What a report says about the tested service, so that its numbers can be reproduced.

    Args:
        config: the configuration it was started with; None if it was already running.

    Returns:
        Its version, or None if it does not say; the name, ranks and defaults of each model; the text of ``config``.
    """
    version: str | None = None
    models: list[dict[str, Any]] = []
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError), httpx.Client(timeout=30) as client:
        cards = client.get(f"{url}/v1/models", headers=authorization()).raise_for_status().json()["data"]
        models = [{name: card.get(name) for name in ("id", "ranks", "defaults")} for card in cards]
        version = (
            client.get(f"{url}/openapi.json", headers=authorization()).raise_for_status().json()["info"]["version"]
        )
    text = {"path": str(config), "text": config.read_text()} if config is not None else None
    return {"version": version, "models": [model for model in models if model["defaults"]], "config": text}


def scrape(urls: Sequence[str]) -> dict[str, float]:
    """The counters of :data:`METRICS` as Prometheus would read them, summed over the nodes in ``urls``.

    Raises:
        httpx.HTTPError: an address does not answer. ValueError: its answer is not metrics.
    """
    pages = [httpx.get(url, timeout=10).raise_for_status().text for url in urls]
    samples = [sample for page in pages for family in text_string_to_metric_families(page) for sample in family.samples]
    return {
        name: sum(s.value for s in samples if s.name == metric and labels.items() <= s.labels.items())
        for name, (metric, labels) in METRICS.items()
    }


def metrics_urls(server: int) -> list[str]:
    """The metrics addresses of the Ray that process ``server`` started, one per node.

    There may be other Rays on this machine, so it is found by its raylet, a child of the process that started it.

    Raises:
        RuntimeError: ``server`` did not start a Ray; says what to do.
    """
    raylets = [child for child in psutil.Process(server).children(recursive=True) if child.name() == "raylet"]
    if not raylets:
        raise RuntimeError(
            "`serve run` joined a Ray that it did not start (RAY_ADDRESS is set, or `ray start` was run here): "
            "pass the metrics addresses of its nodes with --metrics-url, or do not use that Ray"
        )
    (gcs,) = (word.partition("=")[2] for word in raylets[0].cmdline() if word.startswith("--gcs-address="))
    # Ray requires a token if there is one in the home folder, and passes it to its own processes only.
    auth = {name: value for name, value in raylets[0].environ().items() if name.startswith("RAY_AUTH")}
    # In a separate process, because Ray and gevent do not work together.
    code = (
        f"import ray; ray.init({gcs!r}, log_to_driver=False, logging_level='error'); "
        "nodes = [node for node in ray.nodes() if node['Alive']]; "
        "[print('http://{NodeManagerAddress}:{MetricsExportPort}/metrics'.format(**node)) for node in nodes]"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | auth
    )
    if found.returncode:
        raise RuntimeError(f"the Ray at {gcs} does not tell its metrics port: {found.stderr.strip()[-500:]}")
    return re.findall(r"^http://.*$", found.stdout, re.MULTILINE)
