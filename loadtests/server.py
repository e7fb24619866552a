"""The server under test: started and stopped here unless one is there already, and what it says of itself."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import yaml

from raycache.testing.inject import engines, readiness
from raycache.testing.serve_run import serve_run

__all__ = ["METRICS", "address", "find_metrics_url", "scrape", "serving", "sizes", "wait_ready"]

#: What a run compares itself with; the sum over all label sets.
METRICS = {
    "done": r"ray_raycache_requests_total\{[^}]*outcome=\"done\"",
    "images": r"ray_raycache_images_total\{",
    "queue_seconds": r"ray_raycache_stage_seconds_total\{[^}]*stage=\"queue\"",
    "denoise_seconds": r"ray_raycache_stage_seconds_total\{[^}]*stage=\"denoise\"",
    "restarts": r"ray_raycache_rank_restarts_total\{",
    "retries": r"ray_raycache_retries_total\{",
}


def address(config: Path) -> str:
    """Where the service of a ``serve run`` YAML listens."""
    http = yaml.safe_load(config.read_text()).get("http_options", {})
    return f"http://{http.get('host', '127.0.0.1')}:{http.get('port', 8000)}"


@contextlib.contextmanager
def serving(config: Path, log: Path) -> Iterator[None]:
    """`serve run` on ``config`` while the block runs; its output goes to ``log``.

    Raises:
        RuntimeError: it ended by itself.
    """
    with serve_run(config, log) as process:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"`serve run` ended with code {process.returncode} during the run; see {log}")


def wait_ready(url: str, timeout_s: float) -> None:
    """Until a warm gang serves at ``url``.

    Raises:
        TimeoutError: says what ``/readyz`` said last.
    """
    end = time.monotonic() + timeout_s
    while not (said := readiness(url)).get("ready"):
        if time.monotonic() > end:
            raise TimeoutError(f"{url} was not ready within {timeout_s:g} s: {said.get('reason') or 'no answer'}")
        time.sleep(0.5)


def sizes(url: str) -> tuple[int, int]:
    """Engines, and ranks in all of them."""
    all_engines = engines(url)
    return len(all_engines), sum(len(engine["gang"]["ranks"]) for engine in all_engines)


def scrape(metrics_url: str) -> dict[str, float]:
    """The counters of :data:`METRICS` as Prometheus would read them."""
    with urllib.request.urlopen(metrics_url, timeout=10) as reply:
        text = reply.read().decode()
    return {
        name: sum(float(value) for value in re.findall(rf"^{pattern}.*\s(\S+)$", text, re.MULTILINE))
        for name, pattern in METRICS.items()
    }


def find_metrics_url() -> str:
    """Where the local Ray's first node exports its metrics. In a process of its own: Ray and gevent do not mix."""
    code = (
        "import ray; ray.init('auto', log_to_driver=False, logging_level='error'); n = ray.nodes()[0]; "
        "print(f\"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics\")"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if found.returncode:
        raise RuntimeError(f"no local Ray to ask for its metrics port: {found.stderr.strip().splitlines()[-1:]}")
    return found.stdout.strip().splitlines()[-1]
