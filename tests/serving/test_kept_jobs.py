"""Jobs that nobody waits for, on a real Ray: they outlive connections, ingresses, engines and the store itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from raycache.settings import AppSettings
from raycache.testing.inject import engines, kill_engine, kill_ingress, wait_for
from tests.helpers.asking import ASK, URL, draw, pixels, scraped
from tests.helpers.dashboard import queried
from tests.serving.conftest import application

LATER = {"prefer": "respond-async"}
NAME = "kept"


@pytest.fixture(scope="module")
def url(
    http: str, gang_settings: Callable[..., AppSettings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    settings = gang_settings(
        parallel={"engine_cpus": 0.2},
        ingress={"num_cpus": 0.1},
        store={"folder": str(tmp_path_factory.mktemp("store")), "num_cpus": 0.1, "max_active": 2},
        cache={"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
        defaults={"size": "64x64", "num_inference_steps": 6},
        limits={"max_steps": 5000},
        reliability={"max_queued_seconds": 1e6, "request_timeout_s": 1e6, "watchdog_floor_s": 100.0},
    )
    yield from application(NAME, f"/{NAME}", settings, http, count=1)


@pytest.fixture(scope="module")
def reference(url: str) -> np.ndarray:
    return pixels(draw(url))


def keep(url: str, **fields: Any) -> str:
    """The address of a new job; the store may be on its way."""

    def asked() -> httpx.Response | None:
        response = httpx.post(url + URL, json={**ASK, **fields}, headers=LATER, timeout=60)
        return None if response.status_code == 503 else response

    response = wait_for(asked)
    assert response.status_code == 202, response.text
    return url + response.headers["location"]


def told(job: str) -> dict[str, Any]:
    """What is told of a job; empty while nobody can tell."""
    try:
        response = httpx.get(job, timeout=60)
    except httpx.HTTPError:
        return {}
    return response.json() if response.status_code == 200 else {}


def reaches(job: str, *statuses: str, seconds: float = 120) -> dict[str, Any]:
    return wait_for(lambda: (found := told(job)).get("status") in statuses and found, seconds)


def jobs_of_ranks(url: str) -> list[str]:
    return [job for engine in engines(url) for job in engine["gang"]["jobs"]]


def store_pid() -> int:
    """Of the one that this test started."""
    return next(
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f"ServeReplica:{NAME}:Store" in " ".join(process.info["cmdline"] or ())
    )


def test_it_is_what_a_client_who_waits_gets(url: str, reference: np.ndarray):
    job = keep(url)
    done = reaches(job, "completed", "failed")
    assert done["status"] == "completed", done
    np.testing.assert_array_equal(pixels(httpx.get(f"{job}/content")), reference)
    assert httpx.get(f"{job}/content?index=0", headers={"range": "bytes=1-3"}).content == b"PNG"
    assert httpx.delete(job).json()["deleted"]
    assert httpx.get(job).status_code == 404


def test_deleting_drops_it_on_all_ranks(url: str):
    job = keep(url, num_inference_steps=5000)
    reaches(job, "in_progress")
    wait_for(lambda: jobs_of_ranks(url))
    httpx.delete(job, timeout=60).raise_for_status()
    wait_for(lambda: not jobs_of_ranks(url), 30)


def test_it_outlives_an_ingress_an_engine_and_the_store(url: str, reference: np.ndarray):
    long = keep(url, num_inference_steps=400)
    reaches(long, "in_progress")
    kill_ingress(url)
    wait_for(lambda: told(long).get("status") == "in_progress")
    old = store_pid()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: told(long).get("status"))
    assert store_pid() != old
    kill_engine(url)
    time.sleep(1)
    short = keep(url)
    assert reaches(short, "completed", "failed", seconds=300)["status"] == "completed"
    # The other job may share its calls, which rounds otherwise.
    assert np.abs(pixels(httpx.get(f"{short}/content")).astype(int) - reference).max() <= 1
    done = reaches(long, "completed", "failed", seconds=300)
    assert done["status"] == "completed", done
    assert pixels(httpx.get(f"{long}/content")).shape == (64, 64, 3)


def test_what_the_dashboard_plots_of_it_is_exported(url: str):
    """Tries that are made again take a death, and are left out: this test needs no other before it."""
    job = keep(url)
    reaches(job, "completed")
    httpx.delete(job, timeout=60).raise_for_status()
    plotted = {name for name in queried() if "_stored_" in name} - {"ray_raycache_stored_retries_total"}
    wait_for(lambda: plotted <= set(scraped()), 60, every_s=1.0)
    for name in plotted:
        assert any(sample.labels.get("application") == NAME for sample in scraped()[name])
