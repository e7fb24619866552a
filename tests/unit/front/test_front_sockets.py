"""Heads of requests over real sockets, under a uvicorn as Serve makes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import pytest
import uvicorn

from raycache.front import http_protocol as front_protocol
from raycache.front import middlewares
from tests.helpers.fake_serve import Serve


@pytest.fixture
def serve() -> Serve:
    return Serve()


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


POST = b"POST /v1/images/generations HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "unit"),
    [(b"2\r\n{}\r\n0\r\nx: ", b"y" * 50_000), (b"2;", b"y" * 50_000), (b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * 10_000)],
    ids=["one field behind", "an extension", "many fields behind"],
)
async def test_what_surrounds_a_body_is_bounded_too(port, serve, before, unit):
    """httptools keeps it all, and only the 30 s of a body ended it."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(POST + before)
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        while sent < 20_000_000:
            writer.write(unit)
            await asyncio.wait_for(writer.drain(), 1)
            await asyncio.sleep(0)
            sent += len(unit)
    writer.close()
    assert sent < 10_000_000, "the connection stays open"
    assert serve.scopes == []


async def test_many_small_pieces_are_a_body_as_well(port, serve):
    pieces = b"1;a=b\r\nx\r\n" * 20_000
    answer = await said(
        port, POST.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + pieces, b"0\r\nx: y\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert serve.bodies == [b"x" * 20_000]


@pytest.mark.parametrize(
    "raw",
    [
        "GET /\u043a\u043b\u044e\u0447 HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
        POST + b"zz\r\n{}",
        POST.replace(b"host", b"content-length: 2\r\nhost") + b"{}",
    ],
    ids=["path", "HTTP/2", "NUL", "chunk", "two lengths"],
)
async def test_what_is_no_http_is_told_so_as_any_other_error(port, serve, raw):
    head, _, body = (await said(port, raw)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-should-retry: false" in head
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert serve.bodies == []
