"""What a stream says while its job waits, and afterwards."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raycache.engine import telling
from raycache.engine.telling import told_of
from raycache.protocol.job import Progress
from raycache.protocol.schemas import PreviewEvent, ProgressEvent, QueuedEvent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_LOOK_S", 0.01)


def step(number: int, preview: np.ndarray | None = None) -> Progress:
    return Progress(number, 2, [False], [None], preview)


async def test_the_place_is_told_at_once_and_when_it_changes():
    progress: asyncio.Queue[Progress | None] = asyncio.Queue()
    places = [QueuedEvent(2, 9.0), QueuedEvent(2, 8.0), QueuedEvent(2, 7.0), QueuedEvent(1, 6.0), QueuedEvent(0, 3.0)]
    looked = iter(places)

    def place() -> QueuedEvent:
        now = next(looked, None)
        if now is None:
            progress.put_nowait(step(1))
            return places[-1]
        return now

    told, events = [], told_of(progress, place, lambda: 1.5)
    async with asyncio.timeout(5):
        async for event in events:
            told.append(event)
            if isinstance(event, ProgressEvent):
                progress.put_nowait(None)
    assert told == [places[0], places[3], places[4], ProgressEvent(1, 2, [False], [None], 1.5)]


async def test_nobody_who_did_not_ask_is_told_a_place():
    progress: asyncio.Queue[Progress | None] = asyncio.Queue()
    small = np.zeros((1, 8, 8, 3), np.uint8)
    for event in (step(1, small), step(2, small), None):
        progress.put_nowait(event)
    told = [event async for event in told_of(progress, None, lambda: None)]
    assert [type(event) for event in told] == [ProgressEvent, PreviewEvent, ProgressEvent, PreviewEvent]
    assert [event.index for event in told if isinstance(event, PreviewEvent)] == [0, 1]


async def test_a_job_that_ends_in_the_queue_ends_the_stream():
    progress: asyncio.Queue[Progress | None] = asyncio.Queue()
    events = told_of(progress, lambda: QueuedEvent(5), lambda: None)
    assert await anext(events) == QueuedEvent(5)
    progress.put_nowait(None)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(events), 5)


async def test_a_closed_stream_waits_for_nothing():
    before = asyncio.all_tasks()
    events = told_of(asyncio.Queue(), lambda: QueuedEvent(5), lambda: None)
    await anext(events)
    await events.aclose()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
