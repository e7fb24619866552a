"""The application over HTTP: two engines of two gloo ranks on a real local Ray, shared by all tests."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from raycache.testing.inject import engines, engines_now, wait_for
from tests.helpers.asking import ASK, ENDLESS, URL, being_drawn, pixels, sent


@pytest.fixture(scope="module")
def client(flux: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=flux, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def reference(client: httpx.Client) -> np.ndarray:
    return pixels(client.post(URL, json=ASK))


def test_an_image_with_its_report(client):
    response = client.post(URL, json=ASK)
    image, body = pixels(response), response.json()
    assert image.shape == (64, 64, 3)
    assert image.std() > 10
    assert body["seeds"] == [7]
    assert body["report"]["method"] == "DBCache"
    assert body["report"]["totals"]["collectives"] == 6, "two ranks decided together in every step"
    assert len(body["report"]["steps"]) == 6
    assert body["times"]["denoise"] > 0
    assert body["times"]["decode"] > 0


def test_the_same_seed_is_the_same_image_on_every_engine(client, reference):
    for _ in range(6):
        np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)
    other = pixels(client.post(URL, json={**ASK, "seed": 8}))
    assert np.abs(other.astype(int) - reference).mean() > 2


def test_without_a_seed_each_image_is_new_and_can_be_drawn_again(client):
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
    with being_drawn(flux):
        answer = None
        for patience_s in (10, 20, 40):  # Serve may have chosen the busy engine, and chooses anew
            with contextlib.suppress(httpx.ReadTimeout):
                answer = client.post(URL, json=ASK, timeout=patience_s)
                break
        assert answer is not None, "the free engine was never chosen"
        np.testing.assert_array_equal(pixels(answer), reference)
        assert sum(engine["running"] for engine in engines_now(flux)) == 1, "one goes on, and the other is free again"


def free_again(url: str) -> bool:
    return not any(engine["running"] for engine in engines_now(url))


def test_a_client_that_leaves_frees_the_engine(client, flux, reference):
    wait_for(lambda: free_again(flux), 60)  # an idle engine refuses nobody
    with sent(flux, num_inference_steps=5000):
        wait_for(lambda: not free_again(flux), 60)
    wait_for(lambda: free_again(flux), 30)
    np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)


@pytest.mark.parametrize("how", ["field", "header"])
def test_a_deadline_ends_the_job(client, flux, reference, how):
    wait_for(lambda: free_again(flux), 60)  # where nobody waits, no job is refused on a prediction
    began = time.monotonic()
    if how == "field":
        response = client.post(URL, json={**ENDLESS, "timeout_s": 1.0})
    else:  # Serve would answer this one itself, in plain text, a second after us
        response = client.post(URL, json=ENDLESS, headers={"x-request-timeout-seconds": "5"})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"
    assert 0.9 < time.monotonic() - began < 15, "and the job takes longer by itself"
    wait_for(lambda: free_again(flux), 30)
    for _ in range(4):
        np.testing.assert_array_equal(pixels(client.post(URL, json=ASK)), reference)


def test_readiness_shows_the_ranks(client, flux):
    body = client.get("/readyz").json()
    assert body["ready"]
    assert len(body["engines"]) == 2
    for engine in body["engines"]:
        assert engine["model"]["num_blocks"] == 6
        assert len(engine["gang"]["ranks"]) == 2
    wait_for(lambda: all(rank["age_s"] < 5 for engine in engines(flux) for rank in engine["gang"]["ranks"]), 60)
    assert client.get("/healthz").json() == {"status": "ok"}
