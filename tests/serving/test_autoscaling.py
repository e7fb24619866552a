"""Engines follow the queued seconds: none while nothing is asked, two when work piles up, none again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from raycache.app import build
from raycache.testing.inject import engines, readiness, wait_for
from raycache.testing.planned_faults import PlannedFault
from tests.helpers.starting import started
from tests.serving.test_http_app import ASK, URL, pixels

#: Longer than any prediction made from images that do not sleep.
SLOW = PlannedFault(kind="sleep", step=1, seconds=1.5).prompt()


@pytest.fixture(scope="module")
def url(http: str, gang_settings: Callable[..., Any]) -> Iterator[str]:
    settings = gang_settings(
        ranks=1,
        parallel={
            "engine_cpus": 0.2,
            "rank_gpus": 1,
            "accelerator_type": "L20",
            "max_active_jobs": 1,
        },
        ingress={"num_cpus": 0.1},
        cache={"type": "none"},
        defaults={"size": "64x64", "num_inference_steps": 4},
        reliability={"watchdog_floor_s": 60.0, "drain_timeout_s": 5.0},
        autoscaling={
            "min_replicas": 0,
            "max_replicas": 2,
            "target_queued_seconds": 3.0,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 4.0,
            "metrics_interval_s": 0.5,
        },
    )

    def start() -> str:
        serve.run(build(settings), name="scaled", route_prefix="/scaled")
        return f"{http}/scaled"

    with started("application 'scaled'", start, lambda: serve.delete("scaled")) as url:
        yield url


def draw(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(url + URL, json={**ASK, "num_inference_steps": 4, **fields}, timeout=240)


def free_gpus() -> float:
    return ray.available_resources().get("GPU", 0.0)


@pytest.mark.timeout(600)
def test_from_none_to_two_and_back(url: str, tmp_path: Path):
    before = free_gpus()
    ready = readiness(url)
    assert (ready["ready"], ready["reason"], ready["engines"]) == (True, "asleep", [])

    first = draw(url)  # waits for the engine that it wakes
    assert first.status_code == 200, first.text
    wait_for(lambda: len(engines(url)) == 1, 60)
    assert free_gpus() == before - 1

    assert draw(url, prompt=SLOW).status_code == 200  # its kind has been learned: about 1.5 s each
    both = tmp_path / "both"  # so that a machine that takes long to start the second does not run out of work meanwhile
    held = PlannedFault(kind="sleep", step=1, seconds=20, until=str(both)).prompt()
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(draw, url, prompt=held) for _ in range(16)]
        wait_for(lambda: len(engines(url)) == 2, 240)
        both.touch()
        assert free_gpus() == before - 2
        answers = [each.result() for each in waiting]
    assert {answer.status_code for answer in answers} == {200}

    wait_for(lambda: readiness(url)["reason"] == "asleep", 120)
    wait_for(lambda: free_gpus() == before, 60)
    refused = draw(url, size="100x100")
    assert refused.status_code == 400
    assert readiness(url)["reason"] == "asleep", "a request that cannot be drawn wakes nobody"

    again = draw(url)
    assert again.status_code == 200
    assert (pixels(again) == pixels(first)).all()
