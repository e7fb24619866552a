"""Bodies that never end, that are too many, that are packed, marked or broken: answered, and nobody else waits."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import logging
import zlib

import pytest

from raycache.front import bodies
from raycache.front.bodies import Bodies, read_whole
from raycache.ingress.api import build_http_app
from raycache.protocol.errors import RequestError
from tests.helpers.asgi import Wire, asked
from tests.helpers.fake_service import SETTINGS, FakeService

LIMIT = SETTINGS.limits.max_body_bytes
BODY = json.dumps({"prompt": "a circle"}).encode()


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def app(service: FakeService):
    return build_http_app(service)


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def packed(data: bytes, window: int) -> bytes:
    maker = zlib.compressobj(wbits=window)
    return maker.compress(data) + maker.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", zipped(BODY)),
        ("GZip", zipped(BODY)),
        ("x-gzip", zipped(BODY)),
        ("identity, gzip", zipped(BODY)),
        ("deflate", packed(BODY, 15)),
        ("deflate", packed(BODY, 9)),
        ("deflate", packed(BODY, -15)),
        ("identity", BODY),
        ("", codecs.BOM_UTF8 + BODY),
        ("", BODY.decode().encode("utf-16")),
        ("", BODY.decode().encode("utf-16-le")),
        ("", BODY.decode().encode("utf-32-be")),
        ("gzip", zipped(codecs.BOM_UTF8 + BODY)),
    ],
    ids=range(13),
)
async def test_what_libraries_and_editors_make_of_a_body_is_undone(app, service, coding, body):
    wire = Wire(app, headers=[("content-encoding", coding)] if coding else [])
    # In two pieces, neither of which can be read alone.
    await wire.send(body[:5], more=True).send(body[5:]).done()
    assert wire.status == 200, wire.text
    assert service.requests[0].prompt == "a circle"


@pytest.mark.parametrize(
    ("coding", "body", "status", "code"),
    [
        ("br", BODY, 415, "unsupported_encoding"),
        ("zstd", BODY, 415, "unsupported_encoding"),
        ("gzip, gzip", BODY, 415, "unsupported_encoding"),
        ("g\xfczip", BODY, 415, "unsupported_encoding"),
        ("gzip", BODY, 400, "invalid_encoding"),
        ("gzip", b"", 400, "invalid_encoding"),
        ("deflate", b"", 400, "invalid_encoding"),
        ("gzip", zipped(BODY)[:-9], 400, "invalid_encoding"),
        ("gzip", zipped(BODY) + b"rest", 400, "invalid_encoding"),
        ("gzip", zipped(b" " * 100 * LIMIT + BODY), 413, "body_too_large"),
        ("deflate", packed(b" " * (LIMIT + 1), 15), 413, "body_too_large"),
        ("", codecs.BOM_UTF16_LE + b"\x00\xd8\x00", 400, "invalid_encoding"),
        ("", b"\xff" * 40, 400, "invalid_json"),
    ],
    ids=range(13),
)
async def test_what_cannot_be_undone_is_refused_by_name(app, coding, body, status, code):
    wire = Wire(app, headers=[("content-encoding", coding.encode("latin-1"))] if coding else [])
    await wire.send(body).done()
    assert (wire.status, wire.error["code"]) == (status, code), wire.text
    if status == 415:
        assert coding.split(",")[0] in wire.error["message"]
        assert "gzip or deflate" in wire.error["message"]


@pytest.mark.slow
async def test_liveness_waits_for_no_body(app):
    slow = [Wire(app).send(b"{", more=True) for _ in range(1100)]
    probe = Wire(app, "/healthz", "GET")  # its own body never comes either
    assert (await probe.done()).status == 200
    assert (await asked(app).done()).status == 200
    async with asyncio.timeout(20):  # and soon, although nobody comes any more
        while sum(not wire.task.done() for wire in slow) > 256:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert sum(not wire.task.done() for wire in slow) in (255, 256), "who was drawn for may have had a place"
    for wire in slow:
        wire.leave()
    await asyncio.gather(*(wire.done() for wire in slow))


@pytest.mark.slow
async def test_the_slowest_gives_its_place_to_whoever_comes(app, service, monkeypatch):
    monkeypatch.setattr(bodies, "_YOUNG_S", 0.0)
    slow = [Wire(app).send(b"{", more=True) for _ in range(300)]
    await asyncio.sleep(0.05)
    ended = [wire for wire in slow if wire.task.done()]
    assert len(ended) == 300 - 256
    assert ended == slow[:44], "the oldest"
    await ended[0].done()
    assert (ended[0].status, ended[0].error["code"]) == (503, "too_many_bodies")
    assert int(ended[0].headers["retry-after"]) >= 1
    assert (await asked(app).done()).status == 200
    for wire in slow:
        wire.leave()
    await asyncio.gather(*(wire.done() for wire in slow))


async def test_a_burst_of_whole_bodies_is_no_crowd(app):
    burst = [asked(app) for _ in range(600)]
    await asyncio.gather(*(wire.done() for wire in burst))
    assert {wire.status for wire in burst} == {200}


async def reading(crowd: Bodies, *chunks: bytes, limit: int = 100, seconds: float = 5.0) -> bytes:
    """One body of ``chunks`` that does not end."""
    inbox: asyncio.Queue = asyncio.Queue()
    for chunk in chunks:
        inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": True})
    return await read_whole(inbox.get, limit, seconds, crowd)


async def code_of(call: object) -> str:
    with pytest.raises(RequestError) as caught:
        await call
    return caught.value.code


async def test_all_of_them_are_bounded_in_number_and_bytes_even_when_they_are_young():
    crowd = Bodies(slow=1, most=2, most_bytes=150)
    held = [asyncio.ensure_future(reading(crowd, b"x" * 60)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert await code_of(reading(crowd)) == "too_many_bodies"
    held[0].cancel()
    await asyncio.gather(held[0], return_exceptions=True)
    assert len(crowd) == 1
    assert await code_of(reading(crowd, b"x" * 91)) == "too_many_bodies"
    held[1].cancel()
    await asyncio.gather(held[1], return_exceptions=True)
    assert len(crowd) == 0
    assert await code_of(reading(crowd, b"x" * 400, limit=500, seconds=0.01)) == "body_too_slow", "alone it may"


async def test_where_bytes_are_short_the_largest_gives_way_to_a_small_one():
    """However young it is: who sends a lot all the time takes nothing from who sends a prompt."""
    crowd = Bodies(most_bytes=150)
    small = asyncio.ensure_future(reading(crowd, b"x" * 20, seconds=0.2))
    large = asyncio.ensure_future(reading(crowd, b"x" * 90))
    await asyncio.sleep(0.01)
    assert await code_of(reading(crowd, b"x" * 30, b"x" * 30, seconds=0.05)) == "body_too_slow", "it was held"
    assert await code_of(large) == "too_many_bodies"
    assert await code_of(small) == "body_too_slow"
    assert len(crowd) == 0


async def test_one_whose_time_is_over_is_ousted_before_it_knows(monkeypatch):
    """`asyncio.Timeout` refuses a new time between the moment it fires and the moment its task hears of it."""
    monkeypatch.setattr(bodies, "_YOUNG_S", 0.0)
    crowd = Bodies(slow=1)
    async with asyncio.timeout(5) as over, asyncio.timeout(5) as new:
        first = crowd.enter(over)
        monkeypatch.setattr(over, "expired", lambda: True)
        monkeypatch.setattr(over, "reschedule", lambda when: pytest.fail("cannot change it any more"))
        crowd.enter(new)
        assert first.ousted
        assert len(crowd) == 1


@pytest.mark.parametrize("at", ["before", "within", "while drawing", "in a stream"])
async def test_who_leaves_costs_no_traceback(app, service, caplog, at):
    waiting = asyncio.Event()

    async def never(request):
        await waiting.wait()

    async def stream(request):
        await waiting.wait()
        yield

    service.generate, service.generate_stream = never, stream
    with caplog.at_level(logging.WARNING):
        if at == "before":
            await Wire(app).leave().done()
        elif at == "within":
            await Wire(app).send(b'{"prompt": ', more=True).leave().done()
        else:
            wire = asked(build_http_app(service), stream=at == "in a stream").leave()
            await asyncio.sleep(0.05)
            wire.task.cancel()  # what Serve does with the request of who left
            await asyncio.gather(wire.task, return_exceptions=True)
        await asyncio.sleep(0.01)
    assert caplog.text == ""
