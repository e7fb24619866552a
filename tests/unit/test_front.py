"""What stands in Serve's proxy, over a fake of Serve and over real sockets under uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
import uvicorn
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve._private.http_util import get_http_response_status, send_http_response_on_exception
from ray.serve.exceptions import DeploymentUnavailableError

from raycache import bodies, front, front_protocol
from raycache.front import Front, middlewares
from raycache.request_ids import clean
from tests.unit.asgi import URL, Wire

PLAIN = (b"content-type", b"text/plain; charset=utf-8")


class Serve:
    """Serve's proxy behind the front: decodes headers as it does, and answers as told."""

    def __init__(self) -> None:
        self.scopes, self.bodies, self.alive = [], [], True
        self.answer: tuple[int, bytes, list] | None = (200, b"{}", [(b"content-type", b"application/json")])
        self.failure: Exception | None = None

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        if self.failure:
            raise self.failure
        for name, value in scope["headers"]:
            if name.startswith((b"x-", b"serve")):
                value.decode()
        more, body = scope["method"] == "POST", b""
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.answer:
            status, text, headers = self.answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": text[:3], "more_body": True})
            await send({"type": "http.response.body", "body": text[3:], "more_body": False})

    def header(self, name: str) -> bytes | None:
        return dict(self.scopes[-1]["headers"]).get(name.encode())


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


@pytest.fixture
async def port(serve, monkeypatch) -> AsyncIterator[int]:
    """A uvicorn as Serve makes one, with what our callback gives it."""
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    monkeypatch.setattr(front_protocol, "_SECONDS", 1.0)
    (middleware,) = middlewares()
    app = middleware.cls(serve, *middleware.args, **middleware.kwargs)
    config = uvicorn.Config(lambda: app, factory=True, host="127.0.0.1", port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.ensure_future(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def said(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = b"GET /healthz HTTP/1.1\r\nhost: a\r\n"


async def test_a_head_is_bounded_in_time_and_bytes(port, serve):
    assert (await said(port, HEAD + b"connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
    heads = ((HEAD,), (HEAD[:3], HEAD[3:9], HEAD[9:]), (b"G",))
    silent, *slow = await asyncio.gather(said(port), *(said(port, *pieces, pause_s=0.1) for pieces in heads))
    assert silent == b"", "who asks nothing is told nothing"
    for answer in slow:
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert json.loads(answer.split(b"\r\n\r\n")[1])["error"]["code"] == "headers_too_slow"
    huge = await said(port, HEAD + b"x: " + b"y" * 70_000)
    assert huge.startswith(b"HTTP/1.1 431"), huge
    many = await said(port, HEAD + b"x: y\r\n" * 200 + b"connection: close\r\n\r\n")
    assert many.startswith(b"HTTP/1.1 431"), many
    assert len(serve.scopes) == 1


async def test_a_second_request_on_a_connection_is_bounded_too(port):
    """uvicorn's time-out of idle connections ends with any byte, also with one that begins no request."""
    for rest in ((b"\r\n", HEAD), (b"\r\n",)):
        answer = await said(port, HEAD + b"\r\n", *rest, pause_s=0.1)
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]


async def test_a_slow_answer_is_not_a_slow_head(port, serve):
    wait = asyncio.Event()
    original = serve.__class__.__call__

    async def slow(self, scope, receive, send):
        await wait.wait()
        await original(self, scope, receive, send)

    serve.__class__ = type("Slow", (Serve,), {"__call__": slow})
    asyncio.get_running_loop().call_later(1.5, wait.set)
    assert (await said(port, HEAD + b"connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_half_a_request_and_leaving_cost_no_traceback(port, serve, caplog):
    with caplog.at_level(logging.WARNING):
        for half in (b"", b"G", HEAD, b"\x16\x03\x01\x02", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(half)
            await writer.drain()
            writer.transport.abort()
        await asyncio.sleep(0.1)
    assert "Traceback" not in caplog.text
    assert serve.scopes == []
