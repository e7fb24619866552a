"""What stands in Serve's proxy, over a fake of Serve."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import get_http_response_status, send_http_response_on_exception
from ray.serve.exceptions import DeploymentUnavailableError

from raycache import front
from raycache.front import Front, bodies
from raycache.protocol.request_ids import clean
from tests.helpers.asgi import URL, Wire
from tests.helpers.fake_serve import Serve

PLAIN = (b"content-type", b"text/plain; charset=utf-8")


@pytest.fixture
def serve() -> Serve:
    return Serve()


def posted(serve: Serve, body: bytes = b"{}", headers: list | None = None) -> Wire:
    length = [("content-length", str(len(body)))]
    return Wire(Front(serve), headers=[*length, *(headers or [])]).send(body)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"follow-me-7", b"follow-me-7"),
        ("Größe".encode(), b"Gr??e"),
        (b"Gr\xf6\xdfe", b"Gr??e"),
        (b"\xff\xfe\x00\x01", b"????"),
        (b"a\x85b\x1b[31m\x7f", b"a?b?[31m?"),
        ("a\u2028b\u202e".encode(), b"a?b?"),
        (b"x" * 5000, b"x" * 128),
        (b"", None),
        (b"   ", None),
    ],
)
async def test_an_id_of_a_request_is_what_logs_and_headers_can_hold(serve, given, kept):
    wire = await posted(serve, headers=[(b"x-request-id", given)]).done()
    assert wire.status == 200
    assert serve.header("x-request-id") == kept
    assert clean(clean(given.decode(errors="replace"))) == (kept or b"").decode()


@pytest.mark.parametrize(
    "name", ["x-request-timeout-seconds", "x-session-id", "serve_multiplexed_model_id", "serve-multiplexed-model-id"]
)
async def test_what_serve_decodes_can_be_decoded(serve, name):
    assert (await posted(serve, headers=[(name, b"\xff\xf6")]).done()).status == 200
    assert serve.header(name).decode() == "\ufffd\ufffd"


async def test_other_headers_stay_as_they_are_but_nobody_asks_to_be_drawn_for_after_leaving(serve):
    headers = [("authorization", b"Bearer schl\xfcssel"), ("x-request-disconnect-disabled", "?1")]
    await posted(serve, headers=headers).done()
    assert serve.header("authorization") == b"Bearer schl\xfcssel"
    assert serve.header("x-request-disconnect-disabled") is None


@pytest.mark.parametrize(
    ("headers", "path", "status", "code"),
    [
        ([(f"x-{k}", "y") for k in range(99)], URL, 431, "headers_too_large"),
        ([("x", "y" * 40_000)], URL, 431, "headers_too_large"),
        ([("content-length", "17000000")], URL, 413, "body_too_large"),
        ([("content-length", "9" * 5000)], URL, 413, "body_too_large"),
        ([], "/" + "x" * 9000, 414, "address_too_long"),
    ],
)
async def test_bounds(serve, headers, path, status, code):
    wire = await Wire(Front(serve), path, headers=[("content-length", "2"), *headers]).send(b"{}").done()
    assert (wire.status, wire.error["code"]) == (status, code)
    assert serve.scopes == [], "no replica hears of it"


async def test_bodies_are_whole_before_a_replica_hears_of_them(serve):
    wire = Wire(Front(serve), headers=[("transfer-encoding", "chunked")])
    wire.send(b"{", more=True)
    await asyncio.sleep(0.02)
    assert serve.scopes == []
    await wire.send(b"}").done()
    assert serve.bodies == [b"{}"]


async def test_unfinished_bodies_are_bounded_and_hold_nobody_up(serve, monkeypatch):
    monkeypatch.setattr(bodies, "_YOUNG_S", 0.0)
    app = Front(serve)
    slow = [Wire(app, headers=[("content-length", "9")]).send(b"{", more=True) for _ in range(1100)]
    await asyncio.sleep(0.1)
    assert sum(not wire.task.done() for wire in slow) == 256
    assert {wire.status for wire in slow if wire.task.done()} == {503}
    assert (await Wire(app, "/healthz", "GET").done()).status == 200
    assert (await Wire(app, headers=[("content-length", "2")]).send(b"{}").done()).status == 200
    for wire in slow:
        wire.leave()
    await asyncio.gather(*(wire.done() for wire in slow))
    assert sum(wire.status is None for wire in slow) == 255, "who left is told nothing"


async def test_a_body_that_does_not_end(serve, monkeypatch):
    monkeypatch.setattr(front, "_BODY_S", 0.02)
    wire = await Wire(Front(serve), headers=[("content-length", "9")]).send(b"{", more=True).done()
    assert (wire.status, wire.error["code"]) == (408, "body_too_slow")


def ignored(error: Exception) -> bool:
    """Serve's proxy answers nothing to it, and uvicorn then plain text."""
    return not send_http_response_on_exception(get_http_response_status(error, None, "an-id"), False)


def test_to_a_dead_ingress_serve_says_nothing():
    """What the front goes by: an answer that never began."""
    assert ignored(ActorDiedError())
    assert ignored(ActorUnavailableError("a moment", None))
    assert not ignored(TimeoutError())
    assert not ignored(DeploymentUnavailableError(DeploymentID(name="Ingress")))


@pytest.mark.parametrize(
    ("answer", "status", "code", "retry"),
    [
        (None, 503, "ingress_died", "2"),  # what Serve does with a dead replica: nothing
        ((503, b"Deployment is unavailable", [PLAIN]), 503, "not_ready", "2"),
        ((503, b"queue full", [PLAIN, (b"retry-after", b"7")]), 503, "not_ready", "7"),
        ((429, b"queue full", [PLAIN]), 429, "queue_full", "2"),
        ((408, b"Request a timed out", [PLAIN]), 408, "deadline_exceeded", None),
        ((404, b"Path '/x' not found.", [PLAIN]), 404, "http_error", None),
        ((500, b"", [PLAIN]), 500, "http_error", None),
    ],
)
async def test_serves_own_words_become_errors_like_ours(serve, answer, status, code, retry):
    serve.answer = answer
    wire = await posted(serve).done()
    assert (wire.status, wire.error["code"]) == (status, code)
    assert wire.headers["content-type"] == "application/json"
    assert int(wire.headers["content-length"]) == len(wire.text)
    assert wire.headers.get("retry-after") == retry
    assert wire.headers["x-should-retry"] == ("true" if retry else "false")
    if answer and answer[1]:
        assert answer[1].decode() in wire.error["message"]


async def test_a_failure_of_serve_itself_is_logged_and_told_to_nobody(serve, caplog):
    serve.failure = RuntimeError("/secret/path")
    wire = await posted(serve).done()
    assert (wire.status, wire.error["code"]) == (500, "internal_error")
    assert "secret" in caplog.text
    assert "secret" not in wire.text


@pytest.mark.parametrize(
    "answer", [(200, b"text", [PLAIN]), (404, b'{"error": 1}', [(b"content-type", b"application/json")])]
)
async def test_what_applications_answer_stays_as_it_is(serve, answer):
    serve.answer = answer
    wire = await posted(serve).done()
    assert (wire.status, wire.text) == (answer[0], answer[1].decode())


async def test_serves_own_health_stays_as_it_is(serve):
    serve.answer = (503, b"draining", [PLAIN])
    wire = await Wire(Front(serve), "/-/healthz", "GET").done()
    assert (wire.status, wire.text) == (503, "draining")


async def test_bodies_with_images_have_bounds_and_places_of_their_own(serve, monkeypatch):
    """Under whatever prefix the application has."""
    edits = "/flux/v1/images/edits"
    large = [("content-length", "17000000")]
    assert (await Wire(Front(serve), edits, headers=large).send(b"{}").done()).status == 200
    wire = await Wire(Front(serve), edits, headers=[("content-length", str((64 << 20) + 1))]).send(b"{}").done()
    assert (wire.status, wire.error["code"]) == (413, "body_too_large")
    monkeypatch.setattr(front, "MOST_UPLOAD", 30)
    monkeypatch.setattr(front, "_MOST_BODY", 10)
    chunked = [("transfer-encoding", "chunked")]
    for path, status in ((edits, 200), (URL, 413)):
        assert (await Wire(Front(serve), path, headers=chunked).send(b"x" * 20).done()).status == status
    wire = await Wire(Front(serve), edits, headers=chunked).send(b"x" * 31).done()
    assert (wire.status, wire.error["code"]) == (413, "body_too_large")


async def test_uploads_that_never_end_take_no_place_of_a_prompt(serve, monkeypatch):
    monkeypatch.setattr(bodies, "_MOST_UPLOADS", 2)
    app = Front(serve)
    length = [("content-length", "9")]
    waiting = [Wire(app, "/v1/images/edits", headers=length).send(b"x", more=True) for _ in range(2)]
    await asyncio.sleep(0)
    wire = await Wire(app, "/v1/images/edits", headers=length).send(b"x").done()
    assert (wire.status, wire.error["code"]) == (503, "too_many_bodies")
    assert (await Wire(app, headers=[("content-length", "2")]).send(b"{}").done()).status == 200
    for wire in waiting:
        await wire.leave().done()
    assert (await Wire(app, "/v1/images/edits", headers=length).send(b"x").done()).status == 200
