"""Two engines of two ranks under faults, over HTTP. After each: bit-equal pictures, and nothing left over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, assume, given, settings
from ray.util import placement_group_table

from raycache.testing.faulty_rank import PlannedFault
from raycache.testing.inject import engines, kill_engine, kill_ingress, kill_rank, rank_pids, readiness, wait_for
from tests.hostile import Hostile, bodies, check, oddities
from tests.serving.test_http_app import ASK, ENDLESS, URL, pixels

ENGINES = 2


def draw(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(url + URL, json={**ASK, **fields}, timeout=240)


def rank_processes() -> set[int]:
    """Every rank process of this test run's own Ray."""
    pids = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RankActor"):
                pids.add(process.pid)
    return pids


def groups() -> int:
    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def busy_engine(url: str) -> int:
    """The index of the engine that draws a long job, once one does. Statuses may be a second old and tell of an earlier
    picture, so only steps count that no reference has."""

    def found() -> list[int]:
        return [k for k, engine in enumerate(engines(url)) if (engine["gang"]["ranks"] or [{}])[0].get("step", 0) > 6]

    return wait_for(found, 60)[0]


@pytest.fixture(scope="module")
def reference(flux: str) -> np.ndarray:
    return pixels(draw(flux))


@pytest.fixture(scope="module")
def others(flux: str) -> set[int]:
    """Ranks of gangs that other tests hold."""
    return rank_processes() - set(rank_pids(flux))


@pytest.fixture
def sound(flux: str, reference: np.ndarray, others: set[int]) -> Iterator[None]:
    """Afterwards every engine is back and draws the reference, no rank is left over, and no placement group."""
    before = groups()
    yield
    wait_for(lambda: [engine["ready"] for engine in engines(flux)] == [True] * ENGINES, 240)
    wait_for(lambda: not any(engine["running"] for engine in engines(flux)), 60)
    with ThreadPoolExecutor() as pool:
        for answer in pool.map(lambda _: draw(flux), range(2 * ENGINES)):
            np.testing.assert_array_equal(pixels(answer), reference)
    wait_for(lambda: rank_processes() == set(rank_pids(flux)) | others, 60)
    wait_for(lambda: groups() == before, 60)


def test_every_engine_loses_an_idle_rank(flux: str, sound: None, reference: np.ndarray):
    kill_rank(flux, rank=0, engine=0)
    kill_rank(flux, rank=1, engine=1)
    with ThreadPoolExecutor() as pool:
        for answer in pool.map(lambda _: draw(flux), range(4)):
            np.testing.assert_array_equal(pixels(answer), reference)


def test_a_rank_dies_in_a_job_and_nobody_notices(flux: str, sound: None, tmp_path: Path):
    prompt = PlannedFault(kind="kill", rank=1, step=3, once=str(tmp_path / "killed")).prompt()
    answer = draw(flux, prompt=prompt)
    assert (tmp_path / "killed").exists()
    np.testing.assert_array_equal(pixels(answer), pixels(draw(flux, prompt=prompt)))


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_dies_under_a_job_and_another_draws_it(flux: str, sound: None, reference: np.ndarray, stream: bool):
    slow = {**ASK, "num_inference_steps": 400}
    with ThreadPoolExecutor() as pool:
        if not stream:
            answer = pool.submit(draw, flux, **slow)
            kill_engine(flux, busy_engine(flux))
            # Nobody may know of the death yet: these are sent to the dead engine as likely as to the living one.
            for right_after in pool.map(lambda _: draw(flux), range(2)):
                np.testing.assert_array_equal(pixels(right_after), reference)
            assert pixels(answer.result()).shape == reference.shape
            return
        events = pool.submit(streamed, flux, slow)
        kill_engine(flux, busy_engine(flux))
        told = events.result()
    assert [event["step"] for event in told if event["type"] == "raycache.progress"] == list(range(1, 401))
    assert told[-1]["type"] == "image_generation.completed"


def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", url + URL, json={**body, "stream": True}, timeout=240) as response:
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


def test_the_ingress_dies(flux: str, sound: None, reference: np.ndarray):
    old = readiness(flux)["pid"]
    kill_ingress(flux)
    wait_for(lambda: readiness(flux, 2).get("pid", old) != old and readiness(flux)["ready"], 120)
    np.testing.assert_array_equal(pixels(draw(flux)), reference)


STAGES = {
    "encode": PlannedFault(kind="sleep", at="encode", seconds=2),
    "first step": PlannedFault(kind="sleep", at="denoise", step=0, seconds=2),
    "a later step": PlannedFault(kind="sleep", rank=1, at="denoise", step=3, seconds=2),
    "decode": PlannedFault(kind="sleep", at="decode", seconds=2),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_leaves(flux: str, sound: None, stage: str):
    before = {engine["replica"]: engine["gang"]["restarts"] for engine in engines(flux)}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(flux + URL, json={**ASK, "prompt": STAGES[stage].prompt()}, timeout=1.0)
    assert {engine["replica"]: engine["gang"]["restarts"] for engine in engines(flux)} == before


def test_a_client_leaves_the_queue(flux: str, sound: None):
    slow = PlannedFault(kind="sleep", at="encode", seconds=6).prompt()
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(draw, flux, prompt=slow) for _ in range(ENGINES)]
        wait_for(lambda: sum(engine["running"] for engine in engines(flux)) == ENGINES, 30)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(flux + URL, json=ASK, timeout=1.0)
        wait_for(lambda: not any(engine["queued"] for engine in engines(flux)), 4)
        assert sum(engine["running"] for engine in engines(flux)) == ENGINES, "it left while it was queued"
        assert [answer.result().status_code for answer in running] == [200, 200]


def test_a_burst_over_the_queue_and_a_deadline_shorter_than_the_job(flux: str, sound: None, tmp_path: Path):
    # Statuses may be a second old: the job itself tells that it is being drawn, or the burst could come before it.
    drawing = PlannedFault(kind="sleep", seconds=0, once=str(tmp_path / "drawing"))
    with ThreadPoolExecutor(24) as pool:
        late = pool.submit(draw, flux, **{**ENDLESS, "prompt": drawing.prompt(), "timeout_s": 5})
        wait_for((tmp_path / "drawing").exists, 30)
        burst = list(pool.map(lambda k: draw(flux, seed=k, num_inference_steps=40), range(20)))
    assert (late.result().status_code, late.result().json()["error"]["code"]) == (504, "deadline_exceeded")
    statuses = [answer.status_code for answer in burst]
    assert set(statuses) == {200, 429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in burst if answer.status_code == 429)


def test_hostile_requests(flux: str, sound: None):
    """A sample of what `tests/unit/test_hostile.py` sends to the ingress alone: here Serve's own proxy is in front."""
    with httpx.Client(base_url=flux, timeout=60) as client:
        document = client.get("/openapi.json").json()

        @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(bodies(document) | oddities(document))
        def attack(request: Hostile) -> None:
            assume(not 20 < asked_steps(request) <= 5000)  # legal here, and long
            try:
                answer = client.request(request.method, request.path, content=request.body, headers=request.headers)
            except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
                return
            check(request, answer.status_code, answer.headers.get("content-type", ""), answer.text)

        attack()


def asked_steps(request: Hostile) -> float:
    try:
        steps = json.loads(request.body)["num_inference_steps"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return steps if isinstance(steps, int) else 0
