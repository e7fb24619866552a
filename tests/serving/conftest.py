"""One local Ray for the whole pytest run, with pretended GPUs, and a model that draws in milliseconds."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.api import RunTarget

from cache_core import DBCacheOptions
from raycache.app import build
from raycache.demo.noise import build_noise_model
from raycache.front import CALLBACK, VARIABLE
from raycache.gang.gang import Gang
from raycache.protocol.job import Job
from raycache.settings import AppSettings
from raycache.testing.inject import engines
from raycache.testing.planned_faults import enable_planned_faults
from tests.helpers.forked_worker import forked_workers
from tests.helpers.jobs import make_job
from tests.helpers.starting import started

#: Of the jobs that tests hand to a gang themselves.
CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.5)
LONG = 5000  # steps: longer than any test waits


def job(seeds: tuple[int, ...] = (7,), steps: int = 6, **changes: object) -> Job:
    """A small one."""
    return make_job(f"job-{time.monotonic_ns()}", seeds=seeds, steps=steps, **{"cache": CACHE, **changes})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for something shared waits for its start, and for a second one if that fails."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def workers() -> Iterator[None]:
    """Ray's workers cost what they do, not what imports cost."""
    with forked_workers():
        yield


@pytest.fixture(scope="session")
def local_ray(workers: None) -> Iterator[None]:
    """A Ray of our own, whose ranks fail where a prompt says so; its CPUs and GPUs are only numbers."""
    os.environ[VARIABLE] = CALLBACK  # as `make serve` and the image do; Serve's proxy inherits it
    # Ray's own 15 lets whatever else the machine does, this process included, go before ranks and engines.
    os.environ.setdefault("RAY_worker_niceness", "0")
    enable_planned_faults()

    def start() -> None:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=16,
            num_gpus=4,
            resources={"accelerator_type:L20": 1},
            object_store_memory=256 << 20,
            log_to_driver=False,
        )

    with started("Ray", start, ray.shutdown):
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FLUX of 2 + 4 blocks."""
    return build_noise_model(tmp_path_factory.mktemp("models") / "tiny", layers=2, single_layers=4)


@pytest.fixture(scope="session")
def gang_settings(tiny_model: Path) -> Callable[..., AppSettings]:
    """Settings of a CPU gang: ``gang_settings(ranks=2, parallel={...}, reliability={...})``."""

    def make(ranks: int = 2, parallel: dict[str, Any] | None = None, **sections: Any) -> AppSettings:
        base = {"ranks_per_replica": ranks, "device": "cpu", "rank_cpus": 0.25, "threads_per_rank": 1}
        return AppSettings.model_validate(
            {
                "model": {"path": str(tiny_model), "dtype": "float32"},
                "parallel": {**base, "collective_timeout_s": 60, "startup_timeout_s": 150, **(parallel or {})},
                **sections,
            }
        )

    return make


def wait_until(what: Callable[[], bool], timeout: float = 60.0) -> float:
    """Seconds until ``what()`` holds."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout, "timed out"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.fixture(scope="session")
def gang(local_ray: None, gang_settings: Callable[..., AppSettings]) -> Iterator[Gang]:
    """Two ranks that several files break and share: each start costs seconds."""
    settings = gang_settings(
        warmup=[{"size": "64x64"}],
        cache=CACHE.model_dump(),
        reliability={"watchdog_floor_s": 2.0, "max_restarts": 99},
    )
    with started_gang(settings, "shared") as gang:
        yield gang


@contextmanager
def started_gang(settings: AppSettings, name: str) -> Iterator[Gang]:
    """A gang that is ready; a fresh one if the first was not within its ``startup_timeout_s``."""
    made: list[Gang] = []

    def start() -> Gang:
        made.append(Gang(settings, name=f"{name}{len(made) or ''}"))
        made[-1].start()
        return made[-1]

    with started(f"gang {name!r}", start, lambda: made[-1].shutdown()) as gang:
        yield gang


@pytest.fixture(scope="session")
def reference(gang: Gang) -> np.ndarray:
    """The very first image of that gang, when it was fresh."""
    return gang.submit(job()).future.result(60).images


@pytest.fixture(scope="session")
def http(local_ray) -> Iterator[str]:
    """Serve on a free port of this machine; its URL."""

    def start() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        return f"http://127.0.0.1:{port}"

    with started("Serve", start, serve.shutdown) as url:
        yield url


@pytest.fixture(scope="session")
def flux(http: str, gang_settings: Callable[..., AppSettings]) -> Iterator[str]:
    """The application as a user runs it, with a tiny model and two engines of two ranks; its URL."""
    settings = gang_settings(
        # One job at a time, so that what waits, and for what, is known; many at once: `test_gang_many_jobs.py`.
        parallel={"engine_cpus": 0.2, "max_active_jobs": 1},
        ingress={"num_cpus": 0.1},
        cache={"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
        defaults={"size": "64x64", "num_inference_steps": 6},
        limits={"max_pixels": 512 * 512, "max_steps": 5000},
        warmup=[{"size": "64x64"}],
        reliability={
            "max_queued_requests": 3,
            # Endless jobs are predicted to take minutes, and are not to be refused for that on a slow machine.
            "max_queued_seconds": 1e6,
            "request_timeout_s": 1e6,
            "watchdog_floor_s": 100.0,  # jobs sleep here
            "max_restarts": 99,
        },
        num_replicas=2,
    )
    yield from application("flux", "/", settings, http, count=2)


def application(name: str, prefix: str, settings: AppSettings, http: str, count: int) -> Iterator[str]:
    """The URL of an application once so many engines are ready; deployed anew if they are not in time."""
    url = f"{http}{prefix}".rstrip("/")

    def start() -> str:
        target = RunTarget(build(settings), name=name, route_prefix=prefix)
        serve.run_many([target], wait_for_applications_running=False)
        wait_until(lambda: sum(engine["ready"] for engine in engines(url)) >= count, timeout=200)
        return url

    with started(f"application {name!r}", start, lambda: serve.delete(name)):
        yield url
