"""The application over HTTP: two engines of two gloo ranks on a real local Ray, shared by all tests."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import wait_until

URL = "/v1/images/generations"
ASK = {"prompt": "a red circle left of a blue square", "size": "64x64", "n": 1, "seed": 7}
#: Takes minutes: for jobs that are not meant to be finished.
ENDLESS = {**ASK, "num_inference_steps": 5000}


@pytest.fixture(scope="module")
def client(flux: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=flux, timeout=60) as client:
        yield client


def pixels(response: httpx.Response, index: int = 0) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = base64.b64decode(response.json()["data"][index]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)))


def running(client: httpx.Client) -> int:
    time.sleep(1.2)  # what the ingress says of its engines may be a second old
    return sum(engine["running"] for engine in client.get("/readyz").json()["engines"])


@pytest.fixture(scope="module")
def reference(client: httpx.Client) -> np.ndarray:
    return pixels(client.post(URL, json=ASK))


def test_a_picture_with_its_report(client):
    response = client.post(URL, json=ASK)
    picture, body = pixels(response), response.json()
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 10
    assert body["seeds"] == [7]
    assert body["report"]["method"] == "DBCache"
    assert body["report"]["totals"]["collectives"] == 6, "two ranks decided together in every step"
    assert len(body["report"]["steps"]) == 6
    assert body["times"]["denoise"] > 0
    assert body["times"]["decode"] > 0


def test_the_same_seed_is_the_same_picture_on_every_engine(client, reference):
    for _ in range(6):
        np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)
    other = pixels(client.post(URL, json={**ASK, "seed": 8}))
    assert np.abs(other.astype(int) - reference).mean() > 2


def test_without_a_seed_each_picture_is_new_and_can_be_drawn_again(client):
    body = {key: value for key, value in ASK.items() if key != "seed"}
    first, second = (client.post(URL, json=body) for _ in range(2))
    assert first.json()["seeds"] != second.json()["seeds"]
    again = client.post(URL, json={**body, "seed": first.json()["seeds"][0]})
    np.testing.assert_array_equal(pixels(again), pixels(first))


def test_image_k_is_drawn_from_seed_plus_k(client, reference):
    response = client.post(URL, json={**ASK, "seed": 6, "n": 2})
    assert response.json()["seeds"] == [6, 7]
    assert np.abs(pixels(response, 1).astype(int) - reference).max() <= 1


@pytest.mark.parametrize("cache", [{"type": "none"}, {"type": "FBCache"}, {"type": "DBPrune", "Fn_compute_blocks": 1}])
def test_the_cache_is_chosen_per_request(client, cache):
    cache = {**cache, "Bn_compute_blocks": 1} if cache["type"] == "DBPrune" else cache
    response = client.post(URL, json={**ASK, "cache": cache})
    assert pixels(response).shape == (64, 64, 3)
    report = response.json()["report"]
    assert (report and report["method"]) == (None if cache["type"] == "none" else cache["type"])


def test_a_cache_that_saves_nothing_is_said_in_the_reply(client):
    body = client.post(URL, json={**ASK, "cache": {"type": "FBCache"}}).json()
    assert any("warmup_steps=8 covers all 6 steps" in warning for warning in body["warnings"])


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"size": "48x48"}, "size", "64x48"),
        ({"size": "65x64"}, "size", "64x64"),
        ({"size": "1024x1024"}, "size", "512x512"),
        ({"n": 99}, "n", "4"),
        ({"num_inference_steps": 5001}, "num_inference_steps", "5000"),
        ({"prompt": "x" * 4001}, "prompt", "4000"),
        (
            {"cache": {"type": "DBCache", "Fn_compute_blocks": 4, "Bn_compute_blocks": 4}},
            "cache.Bn_compute_blocks",
            "2",
        ),
        ({"cache": {"type": "DBCache", "Fn": 4}}, "cache.Fn", "unknown"),
        ({"sed": 4}, "sed", "seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_rank_sees_it(client, fields, param, word):
    response = client.post(URL, json={**ASK, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert word in error["message"]


def test_framework_errors_have_openais_shape(client):
    for response, status in (
        (client.get("/v1/nothing"), 404),
        (client.put(URL), 405),
        (client.post(URL, content=b"{", headers={"content-type": "application/json"}), 400),
        (client.post(URL, content=b"x" * (1 << 20) + b"y", headers={"content-type": "application/json"}), 413),
        (client.post(URL, content=b"{}"), 415),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_raw_bytes(client, reference):
    response = client.post(URL, json=ASK, headers={"accept": "image/png"})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), reference)
    assert response.headers["x-seed"] == "7"


def test_two_engines_draw_at_the_same_time(client, flux, reference):
    slow = {**ENDLESS, "num_inference_steps": 1000}
    with ThreadPoolExecutor() as pool:
        before = [pool.submit(httpx.post, flux + URL, json=slow, timeout=120) for _ in range(2)]
        wait_until(lambda: running(client) == 2)
        pictures = [pixels(future.result()) for future in before]
    np.testing.assert_array_equal(*pictures)
    np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)


def test_a_client_that_leaves_frees_the_engine(client, flux, reference):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(flux + URL, json=ENDLESS, timeout=1.0)
    wait_until(lambda: running(client) == 0)
    np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)


@pytest.mark.parametrize("how", ["field", "header"])
def test_a_deadline_ends_the_job(client, reference, how):
    began = time.monotonic()
    if how == "field":
        response = client.post(URL, json={**ENDLESS, "timeout_s": 1.0})
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert response.headers["x-should-retry"] == "false"
    else:
        # Serve answers this one itself; what matters is that the job does not go on without its client.
        response = client.post(URL, json=ENDLESS, headers={"x-request-timeout-seconds": "1"})
        assert response.status_code in (408, 504)
    assert 0.9 < time.monotonic() - began < 5
    wait_until(lambda: running(client) == 0)
    for _ in range(4):
        np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)


def test_a_burst_is_answered_one_by_one(client, flux):
    slow = {**ASK, "num_inference_steps": 40}
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda k: httpx.post(flux + URL, json={**slow, "seed": k}, timeout=120), range(24)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(answers) - len(refused) >= 8, "two engines hold one running and three queued jobs each"
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
    assert client.get("/readyz").json()["ready"]


def test_readiness_shows_the_ranks(client):
    body = client.get("/readyz").json()
    assert body["ready"]
    assert len(body["engines"]) == 2
    for engine in body["engines"]:
        assert engine["model"]["num_blocks"] == 6
        assert len(engine["gang"]["ranks"]) == 2
        assert all(rank["age_s"] < 5 for rank in engine["gang"]["ranks"])
    assert client.get("/healthz").json() == {"status": "ok"}
