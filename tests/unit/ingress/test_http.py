"""The HTTP surface over a fake service: every answer's shape, without Ray."""

import asyncio
import base64
import io
import json
import logging
import os
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, Request
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import BaseModel

from raycache.ingress.api import build_http_app
from raycache.ingress.auth import Key, key_name
from raycache.ingress.dependencies import InContext, body_document, json_body, require_key
from raycache.ingress.replies import drawn
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import RequestError, unavailable
from tests.helpers.asgi import Wire
from tests.helpers.fake_service import READY, URL, FakeService, check_error, post


class Strength(BaseModel):
    of: float


class OddBody(ImagesBody):
    strength: Strength


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def client(service):
    return TestClient(build_http_app(service), raise_server_exceptions=False)


def test_reply_is_openais_and_ours(client):
    body = post(client, n=2, seed=7, style="vivid").json()
    assert {"created", "data", "output_format", "size", "seeds", "times", "report", "warnings"} == set(body)
    assert body["seeds"] == [7, 8]
    assert body["size"] == "32x16"
    assert body["times"] == {"queue": 0.5, "encode": 0.0, "denoise": 2.0, "decode": 0.0}
    assert body["warnings"] == ["`style` has no effect on this server", "odd"]
    images = [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) for item in body["data"]]
    assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 0), (10, 10, 10)]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_raw_bytes(client, service, format):
    response = client.post(URL, json={"prompt": "a", "seed": 3}, headers={"accept": f"image/{format}"})
    assert service.requests[-1].output_format == format, "an image too long for it is refused before it is drawn"
    assert response.headers["content-type"] == f"image/{format}"
    assert response.headers["x-seed"] == "3"
    assert "denoise;dur=2000.0" in response.headers["server-timing"]
    assert Image.open(io.BytesIO(response.content)).size == (32, 16)


def test_raw_bytes_carry_one_image(client):
    response = client.post(URL, json={"prompt": "a", "n": 2}, headers={"accept": "image/png"})
    check_error(response, 400, param="n")


def test_a_client_more_patient_than_is_allowed_named_no_deadline(client, service):
    """Proxies set the header to their own patience, and who reads `timeout_s: too much` never sent one."""
    client.post(URL, json={"prompt": "a"}, headers={"x-request-timeout-seconds": "86400"})
    assert service.requests[-1].timeout_s == service.longest_timeout_s(None) == 3600
    client.post(URL, json={"prompt": "a", "timeout_s": 1e5}, headers={"x-request-timeout-seconds": "86400"})
    assert service.requests[-1].timeout_s > 3600, "what was named is judged as it was named"


def test_json_is_preferred_where_both_are_accepted(client):
    response = client.post(URL, json={"prompt": "a"}, headers={"accept": "image/png, application/json"})
    assert response.headers["content-type"] == "application/json"


def test_header_timeout_is_the_engines_too(client, service):
    """Less what its answer needs to be there before Serve's own, which is a 408 in plain text."""
    for value, expected in (("2.5", 2.0), ("4.5", 3.6), ("9", 4.0)):
        client.post(URL, json={"prompt": "a", "timeout_s": 4.0}, headers={"x-request-timeout-seconds": value})
        assert service.requests[-1].timeout_s == expected
    for value in ("x", "0", "-1", "nan", "inf"):
        response = client.post(URL, json={"prompt": "a"}, headers={"x-request-timeout-seconds": value})
        check_error(response, 400, param="x-request-timeout-seconds")


def test_probes_that_ask_for_heads_only(client, service):
    service.engines = [READY]
    assert [client.head(path).status_code for path in ("/healthz", "/readyz", "/v1/models")] == [200] * 3
    service.engines = []
    head = client.head("/readyz")
    assert (head.status_code, head.headers["retry-after"], head.text) == (503, "42", "")
    assert not any("head" in methods for methods in client.get("/openapi.json").json()["paths"].values())


def test_framework_errors_have_the_shape_too(client):
    check_error(client.get("/nowhere"), 404)
    response = client.get(URL)
    check_error(response, 405)
    assert "POST" in response.headers["allow"]


def test_bodies_that_are_refused(client):
    check_error(client.post(URL, content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json")
    check_error(client.post(URL, content=b"{}", headers={"content-type": "text/plain"}), 415)
    check_error(client.post(URL, content=b"{}"), 415)
    check_error(client.post(URL, data={"prompt": "a"}), 415)
    check_error(post(client, prompt="x" * 3000), 413, "body_too_large")
    check_error(post(client, nonsense=1), 400, "unknown_parameter", "nonsense")


def test_a_body_without_a_length_is_cut_off(client):
    chunks = (b" " * 500 for _ in range(100))
    check_error(client.post(URL, content=chunks, headers={"content-type": "application/json"}), 413)


async def test_a_body_that_does_not_end_frees_its_place(service, monkeypatch):
    monkeypatch.setattr("raycache.ingress.dependencies._BODY_S", 0.05)

    async def drip():
        yield b"{"
        await asyncio.sleep(60)

    transport = httpx.ASGITransport(build_http_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post(URL, content=drip(), headers={"content-type": "application/json"})
    check_error(response, 408, "body_too_slow")


@pytest.mark.parametrize(
    ("failure", "status", "kind", "headers"),
    [
        (RequestError(429, "full", None, "queue_full", 1.2), 429, "rate_limit_error", {"retry-after": "2"}),
        (unavailable("starting"), 503, "server_error", {"retry-after": "5"}),
        (RequestError(504, "late", None, "deadline_exceeded"), 504, "server_error", {"x-should-retry": "false"}),
        (RuntimeError("/secret/path"), 500, "server_error", {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures(client, service, failure, status, kind, headers, stream):
    service.failure = failure
    response = post(client, stream=stream)
    error = check_error(response, status)
    assert error["type"] == kind
    assert "secret" not in response.text
    assert headers.items() <= response.headers.items()


def test_who_asks_is_known_by_the_name_of_its_key(client, service):
    service.keys = (Key(b"alpha", "team blue"), Key(b"beta"))
    for key in (b"alpha", b"beta"):
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
            client.post(URL, json=body, headers={"authorization": f"Bearer {key.decode()}"})
    service.keys = ()
    client.post(URL, json={"prompt": "a"})
    beta = {"key": key_name(b"beta")}
    assert service.askers == [{"key": "team blue"}, {"key": "team blue"}, beta, beta, {}]


def test_keys(client, service):
    service.keys = (b"alpha",)
    check_error(post(client), 401, "invalid_api_key")
    check_error(client.get("/v1/models"), 401, "invalid_api_key")
    assert client.post(URL, json={"prompt": "a"}, headers={"authorization": "Bearer alpha"}).status_code == 200
    assert client.get("/healthz").status_code == 200


async def test_a_key_is_asked_for_before_the_body_is_read(service):
    service.keys = (b"alpha",)
    refused = await Wire(build_http_app(service)).done()  # its body never comes
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


def test_a_new_task_is_a_body_and_a_route(service):
    """Same bounds, strictness, errors and document as the first one."""
    app = build_http_app(service)
    router = APIRouter(dependencies=[Depends(require_key)])

    @router.post("/v1/images/variations", openapi_extra=body_document(OddBody))
    async def vary(http: Request, body: Annotated[OddBody, Depends(json_body(OddBody))], context: InContext):
        return await drawn(http, body, context)

    app.include_router(router)
    client = TestClient(app)
    ask = {"prompt": "a", "strength": {"of": 0.5}, "seed": None}
    assert client.post("/v1/images/variations", json=ask).json()["size"] == "32x16"
    check_error(client.post("/v1/images/variations", json={"prompt": "a"}), 400, param="strength")
    check_error(client.post("/v1/images/variations", json={**ask, "strength": {"of": "0.5"}}), 400, param="strength.of")
    check_error(client.post("/v1/images/variations", content=b"{}"), 415)
    check_error(client.post("/v1/images/variations", json={**ask, "prompt": "x" * 3000}), 413, "body_too_large")
    document = client.get("/openapi.json").json()
    schema = document["paths"]["/v1/images/variations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["strength"] == {"$ref": "#/components/schemas/Strength"}
    assert {"Strength", "DBCacheOptions"} <= set(document["components"]["schemas"])
    service.keys = (b"alpha",)
    check_error(client.post("/v1/images/variations", json=ask), 401)


def test_without_a_key_nothing_is_told_of_the_engines(client, service):
    service.engines, service.keys = [READY], (b"alpha",)
    assert client.get("/readyz").json() == {"ready": True, "reason": None}
    (engine,) = client.get("/readyz", headers={"authorization": "Bearer alpha"}).json()["engines"]
    assert engine["replica"] == "r1"


def test_errors_of_every_kind_are_counted(client, service):
    client.get("/nowhere")
    post(client, nonsense=1)
    service.failure = RuntimeError("a bug")
    post(client)
    service.failure, service.late_failure = None, unavailable("later", code="engine_died")
    post(client, stream=True)
    counted = [(404, "http_error"), (400, "unknown_parameter"), (500, "internal_error"), (503, "engine_died")]
    assert service.metrics.errors == counted


def test_keys_are_not_logged_and_not_repeated(client, service, caplog):
    service.keys = (b"alpha-key",)
    with caplog.at_level(logging.DEBUG):
        for key in ("alpha-key", "wrong-key", "alpha-key wrong-key"):
            assert key not in client.post(URL, json={"prompt": "a"}, headers={"authorization": f"Bearer {key}"}).text
    assert "alpha-key" not in caplog.text
    assert "wrong-key" not in caplog.text


def test_models_and_health(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["flux"]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_readiness(client, service):
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "42"
    assert response.json() == {"ready": False, "reason": "starting", "pid": os.getpid(), "engines": []}
    service.shortage = "no GPU"
    assert client.get("/readyz").json()["reason"] == "no GPU"
    service.asleep = True
    response = client.get("/readyz")
    assert (response.status_code, response.json()["reason"]) == (200, "asleep"), "a probe must not take it out"
    service.asleep = False
    service.engines = [READY]
    response = client.get("/readyz")
    assert response.status_code == 200
    (engine,) = response.json()["engines"]
    assert (engine["replica"], engine["queued"], engine["gang"]) == ("r1", 2, READY.gang)


def test_the_openapi_document_is_whole(client):
    document = client.get("/openapi.json").json()
    body = document["paths"][URL]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "stream", "cache", "seed"} <= set(body["properties"])
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]
