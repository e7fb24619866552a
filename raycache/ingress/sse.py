"""Server-sent events: OpenAI's image stream, with this service's progress events in between."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

import anyio
import numpy as np

from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import RequestError, internal_error
from raycache.protocol.formats import encode
from raycache.protocol.schemas import GenerationResult, PreviewEvent, ProgressEvent, QueuedEvent
from raycache.size import Size

logger = logging.getLogger("ray.serve")

Event = QueuedEvent | ProgressEvent | PreviewEvent | GenerationResult
Events = AsyncGenerator[Event, None]

#: Lines that every reader of server-sent events skips: they show proxies and clients that the stream is alive.
_QUEUED, _ALIVE = ": in the queue\n\n", ": still at it\n\n"


async def begin(events: Events, patience_s: float) -> tuple[Event, Events]:
    """The first event and the rest; after ``patience_s`` seconds without one, a substitute for the first.

    Raises:
        RequestError: refused. A refusal is a status instead of an event, so it is waited for.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait((first,), timeout=patience_s)
        if first.done():
            return first.result(), events
    except BaseException:
        await _stopped(first, events)
        raise
    return QueuedEvent(), _resumed(first, events)


async def keep_alive(texts: AsyncGenerator[str, None], every_s: float) -> AsyncIterator[str]:
    """``texts``, with a comment after every ``every_s`` seconds without one."""
    pending: asyncio.Future[str] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(texts))
            done, _ = await asyncio.wait((pending,), timeout=every_s)
            if not done:
                yield _ALIVE
                continue
            text, pending = pending, None
            try:
                yield text.result()
            except StopAsyncIteration:
                return
    finally:
        await _stopped(pending, texts)


async def _resumed(first: asyncio.Future[Event], rest: Events) -> Events:
    pending: asyncio.Future[Event] | None = first
    try:
        try:
            event = await asyncio.shield(first)
        except StopAsyncIteration:
            return
        pending = None
        yield event
        async for event in rest:
            yield event
    finally:
        await _stopped(pending, rest)


async def _stopped(pending: asyncio.Future[Any] | None, source: AsyncGenerator[Any, None]) -> None:
    """Close ``source`` now, even if ``pending`` waits inside it, and if the caller is being cancelled."""
    # starlette cancels a stream again at every await; the engine would never learn that its client disconnected.
    with anyio.CancelScope(shield=True):
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await source.aclose()


async def stream_events(
    first: Event, rest: Events, body: ImagesBody, on_error: Callable[[RequestError], None]
) -> AsyncGenerator[str, None]:
    """The events of one request as text.

    ``raycache.queued`` while it waits, ``raycache.progress`` after each step, ``image_generation.partial_image`` for
    each preview of each image, ``image_generation.completed`` for each image (of an edit ``image_edit...``); ``error``
    in OpenAI's shape if the job ends without, told to ``on_error``, too.
    """
    try:
        for text in await _event_texts(first, body):
            yield text
        async for event in rest:
            for text in await _event_texts(event, body):
                yield text
    except RequestError as error:
        on_error(error)
        yield _text("error", {"type": "error", **error.body()})
    except Exception:
        # The status was sent already: without an event the client would see a stream that just ends.
        logger.exception("A stream failed")
        on_error(broken := internal_error())
        yield _text("error", {"type": "error", **broken.body()})
    finally:
        # A disconnecting client ends this generator; the engine must learn of it now, not at garbage collection.
        await rest.aclose()


async def _event_texts(event: Event, body: ImagesBody) -> list[str]:
    if isinstance(event, QueuedEvent):
        if event.ahead is None:
            return [_QUEUED]
        return [_text("raycache.queued", {"type": "raycache.queued", **asdict(event)})]
    if isinstance(event, ProgressEvent):
        return [_text("raycache.progress", {"type": "raycache.progress", **asdict(event)})]
    name = f"{body.events}.{'partial_image' if isinstance(event, PreviewEvent) else 'completed'}"
    texts = []
    for index, image in enumerate(event.images):
        data = {
            "type": name,
            "b64_json": await _base64(image, body),
            "created_at": int(time.time()),
            "size": str(Size.of(image)),
            "quality": body.quality_told(),
            "background": "opaque",
            "output_format": body.output_format,
            "image_index": index,
        }
        if isinstance(event, PreviewEvent):
            data["partial_image_index"] = event.index
        else:
            data |= _about_result(event, index, body)
        texts.append(_text(name, data))
    return texts


def _about_result(result: GenerationResult, index: int, body: ImagesBody) -> dict[str, Any]:
    return {
        "seed": result.seeds[index],
        "times": result.times.model_dump(),
        "report": result.report if index == 0 else None,
        "warnings": [*body.ignored(), *result.warnings],
        # OpenAI bills by tokens and its client's type has the field; nothing is billed here.
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
            "output_tokens": 0,
            "total_tokens": 0,
        },
    }


async def _base64(image: np.ndarray, body: ImagesBody) -> str:
    data = await asyncio.to_thread(encode, image, body.output_format, body.output_compression)
    return base64.b64encode(data).decode()


def _text(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
