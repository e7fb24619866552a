"""Two engines of two ranks under faults, over HTTP. After each: bit-equal images, and nothing left over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from ray.util import placement_group_table

from raycache.testing.inject import (
    engines,
    engines_now,
    kill_engine,
    kill_ingress,
    kill_rank,
    rank_pids,
    readiness,
    wait_for,
)
from raycache.testing.planned_faults import PlannedFault
from tests.helpers.asking import ASK, ENDLESS, being_drawn, draw, draw_when_told, pixels, scraped, sent, streamed
from tests.helpers.hostile import Hostile, bodies, check, oddities
from tests.helpers.rank_processes import rank_processes

ENGINES = 2


def causes(name: str) -> set[str]:
    """What a counter has counted, by its label."""
    return {sample.labels["cause"] for sample in scraped().get(name, [])}


def groups() -> int:
    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


def held(url: str, what: str) -> int:
    """Jobs that all engines together have ``queued`` or ``running``, as they say now."""
    return sum(engine[what] for engine in engines_now(url))


@pytest.fixture(scope="module")
def reference(flux: str) -> np.ndarray:
    return pixels(draw(flux))


@pytest.fixture(scope="module")
def others(flux: str) -> set[int]:
    """Ranks of gangs that other tests hold."""
    return rank_processes() - set(rank_pids(flux))


@pytest.fixture
def sound(flux: str, reference: np.ndarray, others: set[int]) -> Iterator[None]:
    """Afterwards every engine is back and draws the reference, no rank is left over, and no placement group.

    Those who were refused may be expected back, and places kept for them; so this comes back when told, too.
    """
    before = groups()
    yield
    wait_for(lambda: [engine["ready"] for engine in engines(flux)] == [True] * ENGINES, 240)
    wait_for(lambda: not held(flux, "running"), 60)
    with ThreadPoolExecutor() as pool:
        for answer in pool.map(lambda _: draw_when_told(flux), range(2 * ENGINES)):
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


def test_an_engine_dies_and_another_draws_its_jobs(flux: str, sound: None, reference: np.ndarray, tmp_path: Path):
    """One is being drawn and streamed, one or more wait behind it, and two come before anybody knows of the death."""
    drawing = tmp_path / "drawing"
    plan = PlannedFault(kind="sleep", step=3, seconds=100, once=str(drawing))
    stuck = {**ASK, "size": "96x64", "prompt": plan.prompt()}
    with ThreadPoolExecutor() as pool:
        events = pool.submit(streamed, flux, stuck)
        wait_for(drawing.exists, 60)
        (doomed,) = [number for number, engine in enumerate(engines_now(flux)) if engine["running"]]
        behind = []
        with being_drawn(flux):  # by the other engine, or all of these would go there
            while not engines_now(flux)[doomed]["queued"]:
                behind.append(pool.submit(draw, flux))
                # Told at most a second late: else so many wait that the other engine has no room for all of them.
                wait_for(lambda: held(flux, "queued") >= len(behind), 60)
        kill_engine(flux, doomed)
        right_after = [pool.submit(draw, flux) for _ in range(2)]
        for answer in (*behind, *right_after):
            np.testing.assert_array_equal(pixels(answer.result()), reference)
        told = events.result()
    assert told[-1]["type"] == "image_generation.completed", told[-1]
    assert [event["step"] for event in told if event["type"] == "raycache.progress"] == [1, 2, 3, 4, 5, 6]
    wait_for(lambda: "engine_died" in causes("ray_raycache_rerouted_total"), 60, every_s=1.0)


def test_the_ingress_dies(flux: str, sound: None, reference: np.ndarray):
    """What it had asked for is read by nobody, and not drawn to its end: that would take minutes."""
    old = readiness(flux)["pid"]
    with being_drawn(flux), ThreadPoolExecutor() as pool:
        waiting = pool.submit(draw, flux, **ENDLESS)
        wait_for(lambda: held(flux, "running") + held(flux, "queued") == 2, 60)
        kill_ingress(flux)
        told = waiting.result()
        assert (told.status_code, told.json()["error"]["code"]) == (503, "ingress_died"), told.text
        assert (told.headers["retry-after"], told.headers["x-should-retry"]) == ("2", "true")
        wait_for(lambda: readiness(flux, 2).get("pid", old) != old and readiness(flux)["ready"], 120)
        np.testing.assert_array_equal(pixels(draw(flux)), reference)
        wait_for(lambda: not held(flux, "running"), 60)


STAGES = {
    "encode": PlannedFault(kind="sleep", at="encode", seconds=1.5),
    "first step": PlannedFault(kind="sleep", at="denoise", step=0, seconds=1.5),
    "a later step": PlannedFault(kind="sleep", rank=1, at="denoise", step=3, seconds=1.5),
    "decode": PlannedFault(kind="sleep", at="decode", seconds=1.5),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_leaves(flux: str, sound: None, tmp_path: Path, stage: str):
    before = {engine["replica"]: engine["gang"]["restarts"] for engine in engines_now(flux)}
    reached = tmp_path / "reached"
    with sent(flux, prompt=STAGES[stage].model_copy(update={"once": str(reached)}).prompt()):
        wait_for(reached.exists, 60)
    wait_for(lambda: not held(flux, "running"), 60)
    assert {engine["replica"]: engine["gang"]["restarts"] for engine in engines_now(flux)} == before


def test_a_client_leaves_the_queue(flux: str, sound: None):
    with being_drawn(flux), being_drawn(flux):
        with sent(flux):
            wait_for(lambda: held(flux, "queued") == 1, 60)
        wait_for(lambda: not held(flux, "queued"), 60)
        assert held(flux, "running") == ENGINES, "it left while it was queued"


def test_a_deadline_shorter_than_the_job(flux: str, sound: None):
    late = draw(flux, **{**ENDLESS, "timeout_s": 3})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_deadline_that_cannot_be_met_is_refused_at_once(flux: str, sound: None):
    with being_drawn(flux), being_drawn(flux):
        refused = draw(flux, timeout_s=10)  # ... and would be answered 504 after ten seconds, if it were let in
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "deadline_unreachable")
    assert int(refused.headers["retry-after"]) > 0


def test_a_burst_over_the_queue(flux: str, sound: None, reference: np.ndarray, tmp_path: Path):
    """Each engine draws one, which takes its time, and holds three; whoever comes now is refused."""
    awake = tmp_path / "awake"
    asleep = PlannedFault(kind="sleep", at="encode", until=str(awake), seconds=100).prompt()
    with ThreadPoolExecutor(40) as pool:
        sleepers = []
        while held(flux, "running") < ENGINES:  # two at once may both go to the same engine
            sleepers.append(pool.submit(draw, flux, prompt=asleep))
        burst = [pool.submit(draw, flux) for _ in range(20)]
        wait_for(lambda: sum(answer.done() for answer in burst) >= 20 - 3 * ENGINES, 60)
        awake.touch()
        answers = [answer.result() for answer in burst]
        assert {answer.result().status_code for answer in sleepers} == {200}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 20 - 3 * ENGINES <= len(refused) < 20
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) > 0
    for answer in answers:
        assert answer in refused or (pixels(answer) == reference).all()


def test_hostile_requests(flux: str, sound: None):
    """A sample of what `tests/unit/ingress/test_hostile.py` sends to the ingress alone, through Serve's own proxy."""
    with httpx.Client(base_url=flux, timeout=60) as client:
        document = client.get("/openapi.json").json()

        @settings(
            max_examples=150,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
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
