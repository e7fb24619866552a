"""A stream says something from admission on: its status, then a comment whenever nothing else was said for a while."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import httpx
import pytest
from openai import OpenAI

from raycache.ingress import replies
from raycache.ingress.api import build_http_app
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.schemas import GenerationResult, ProgressEvent, QueuedEvent
from tests.helpers.asgi import Wire, asked
from tests.helpers.fake_service import FakeService, image

#: Before the tests make it faster.
PROMISED_S = (replies._COMMENT_S, replies._UNDECIDED_S)
RESULT = GenerationResult(images=[image(1)], seeds=[7])
STEP = ProgressEvent(1, 2, [False], [0.1], 0.5)


class Slow(FakeService):
    """Its events come when a test says so; an exception among them is raised."""

    def __init__(self) -> None:
        super().__init__()
        self.events: asyncio.Queue = asyncio.Queue()

    async def generate_stream(self, request):
        try:
            while True:
                event = await self.events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, GenerationResult):
                    return
        finally:
            await asyncio.sleep(0)  # an engine is told, which takes a turn of the loop
            self.closed = True


@pytest.fixture
def service():
    return Slow()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """What takes ten seconds takes a twentieth of one."""
    monkeypatch.setattr("raycache.ingress.replies._COMMENT_S", 0.05)


def comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(":")]


def names(text: str) -> list[str]:
    return [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]


def test_what_is_promised():
    assert PROMISED_S == (10.0, 30.0), "below the 60 s that nginx and most load balancers wait, twice"


async def test_the_status_is_out_on_admission(service):
    wire = asked(build_http_app(service), stream=True)
    await asyncio.sleep(0.02)
    assert wire.status is None, "nobody has decided yet"
    service.events.put_nowait(QueuedEvent())
    await wire.until(": ")
    assert wire.status == 200
    assert wire.headers["content-type"].startswith("text/event-stream")
    assert not wire.task.done()
    service.events.put_nowait(STEP)
    service.events.put_nowait(RESULT)
    await wire.done()
    assert names(wire.text) == ["raycache.progress", "image_generation.completed"]
    assert service.closed


async def test_a_waiting_client_is_told_its_place(service):
    wire = asked(build_http_app(service), stream=True)
    for event in (QueuedEvent(3, 12.5), QueuedEvent(1, None), STEP, RESULT):
        service.events.put_nowait(event)
    await wire.done()
    assert names(wire.text) == ["raycache.queued"] * 2 + ["raycache.progress", "image_generation.completed"]
    told = [json.loads(line.removeprefix("data: ")) for line in wire.text.splitlines() if line.startswith("data: ")]
    assert told[0] == {"type": "raycache.queued", "ahead": 3, "seconds_left": 12.5}
    assert told[1] == {"type": "raycache.queued", "ahead": 1, "seconds_left": None}


async def commented(wire: Wire, times: int) -> None:
    """Wait for so many comments more."""
    before = len(comments(wire.text))
    async with asyncio.timeout(20):
        while len(comments(wire.text)) < before + times:
            await asyncio.sleep(0.01)


async def test_a_comment_whenever_nothing_else_was_said_for_a_while(service):
    wire = asked(build_http_app(service), stream=True)
    service.events.put_nowait(QueuedEvent())
    await wire.until(": ")
    for event in (STEP, RESULT):
        began = time.monotonic()
        await commented(wire, 3)
        assert time.monotonic() - began > 0.09, "in the queue, and in a step that takes long"
        service.events.put_nowait(event)
        await wire.until("image_generation.completed" if event is RESULT else "raycache.progress")
    await wire.done()
    for block in wire.text.strip().split("\n\n"):
        assert block.startswith((":", "event: ")), "comments stand alone"


async def test_no_comment_where_enough_is_said(service):
    wire = asked(build_http_app(service), stream=True)
    for event in (QueuedEvent(), *[STEP] * 20, RESULT):
        service.events.put_nowait(event)
    await wire.done(20)
    assert len(comments(wire.text)) == 1


@pytest.mark.parametrize("after", [0.0, 0.2])
async def test_a_refusal_is_still_a_status(service, after):
    wire = asked(build_http_app(service), stream=True)
    await asyncio.sleep(after)
    service.events.put_nowait(RequestError(429, "full", None, "queue_full", 3.0))
    await wire.done()
    assert (wire.status, wire.error["code"]) == (429, "queue_full")
    assert (wire.headers["retry-after"], wire.headers["x-should-retry"]) == ("3", "true")
    assert service.closed


async def test_a_refusal_after_admission_is_an_event(service):
    wire = asked(build_http_app(service), stream=True)
    service.events.put_nowait(QueuedEvent())
    await wire.until(": ")
    service.events.put_nowait(unavailable("the engine died", code="engine_died"))
    await wire.done()
    assert (wire.status, names(wire.text)) == (200, ["error"])
    assert service.metrics.errors == [(503, "engine_died")]


async def test_where_nobody_decides_for_long_the_status_goes_out_before_a_proxy_cuts(service, monkeypatch):
    """No engine runs, and one is woken: minutes."""
    monkeypatch.setattr("raycache.ingress.replies._UNDECIDED_S", 0.05)
    wire = asked(build_http_app(service), stream=True)
    await wire.until(": ")
    assert wire.status == 200
    await commented(wire, 2)
    service.events.put_nowait(QueuedEvent())
    service.events.put_nowait(STEP)
    service.events.put_nowait(RESULT)
    await wire.done()
    assert names(wire.text) == ["raycache.progress", "image_generation.completed"]
    assert service.closed


@pytest.mark.parametrize("undecided_s", [30.0, 0.01])
@pytest.mark.parametrize("told", [[], [QueuedEvent()], [QueuedEvent(), STEP]])
async def test_a_client_that_leaves_is_known_to_the_engine_at_once(service, monkeypatch, caplog, undecided_s, told):
    monkeypatch.setattr("raycache.ingress.replies._UNDECIDED_S", undecided_s)
    with caplog.at_level(logging.WARNING):
        wire = asked(build_http_app(service), stream=True)
        for event in told:
            service.events.put_nowait(event)
        await asyncio.sleep(0.1)
        assert not service.closed
        if wire.status is None:
            wire.task.cancel()  # Serve does that; starlette looks only once a stream has begun
        wire.leave()
        await asyncio.gather(wire.task, return_exceptions=True)
        async with asyncio.timeout(20):
            while not service.closed:
                await asyncio.sleep(0.01)
    assert caplog.text == ""


async def test_a_stream_that_ends_without_a_word_is_an_error(service):
    async def nothing(request):
        return
        yield

    service.generate_stream = nothing
    wire = await asked(build_http_app(service), stream=True).done()
    assert (wire.status, wire.error["code"]) == (500, "job_failed")


def test_openais_client_reads_past_comments(monkeypatch):
    event = 'event: image_generation.completed\ndata: {"type": "image_generation.completed"}'
    body = f": in the queue\n\n: still at it\n\n{event}\n\n"
    reply = httpx.Response(200, headers={"content-type": "text/event-stream"}, text=body)
    transport = httpx.MockTransport(lambda request: reply)
    client = OpenAI(base_url="http://here/v1", api_key="x", http_client=httpx.Client(transport=transport))
    events = list(client.images.generate(prompt="a", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]
