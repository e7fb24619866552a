"""The events of a job's stream: its place in the queue while it waits, then each step, and previews."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from raycache.protocol.job import Progress
from raycache.protocol.schemas import PreviewEvent, ProgressEvent, QueuedEvent

__all__ = ["Told", "told_of"]

Told = QueuedEvent | ProgressEvent | PreviewEvent

#: Seconds between two checks of the queue.
_LOOK_S = 1.0


async def told_of(
    progress: asyncio.Queue[Progress | None],
    place: Callable[[], QueuedEvent] | None,
    left_s: Callable[[], float | None],
) -> AsyncGenerator[Told, None]:
    """All events up to the end of a job, which is None in ``progress``.

    Args:
        progress: the events from its gang.
        place: its place in the queue; sent immediately, and when it changes. None: not requested.
        left_s: predicted seconds until the answer.
    """
    step = asyncio.ensure_future(progress.get())
    try:
        if place is not None:
            yield (queued := place())
            while not (await asyncio.wait({step}, timeout=_LOOK_S))[0]:
                if (now := place()).ahead != queued.ahead:
                    yield (queued := now)
        previews = 0
        while (done := await step) is not None:
            yield ProgressEvent(done.step, done.steps, done.cached, done.residual_diff, left_s())
            if done.preview is not None:
                yield PreviewEvent(previews, list(done.preview))
                previews += 1
            step = asyncio.ensure_future(progress.get())
    finally:
        step.cancel()
