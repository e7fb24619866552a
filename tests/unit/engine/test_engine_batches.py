"""What the engine learns from jobs that were drawn together: a job costs the gang its part of the batch."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from raycache.engine.engine import Engine
from raycache.protocol.job import JobOutput
from tests.helpers.fake_gang import SETTINGS, FakeGang, finish, output, started


@pytest.mark.parametrize(("images", "batch_size", "share"), [(1, 0, 8.0), (3, 0, 8.0), (1, 4, 2.0), (2, 4, 4.0)])
def test_the_share_of_a_batch(images, batch_size, share):
    pictures = np.zeros((images, 8, 8, 3), np.uint8)
    drawn = JobOutput(pictures, None, encode_s=1.0, denoise_s=5.0, decode_s=2.0, batch_size=batch_size)
    assert drawn.share_s == pytest.approx(share)


async def test_queued_seconds_count_a_batch_once():
    """Two that are drawn together in hardly more time than one: each of those that wait counts for half of it."""
    parallel = SETTINGS.parallel.model_copy(update={"max_batch_size": 2})
    engine = Engine(SETTINGS.model_copy(update={"parallel": parallel}), FakeGang)
    call, running = await started(engine)
    finish(running)
    await call
    call, running = await started(engine)
    running.future.set_result(output(running.job, batch_size=2))
    result = await call
    assert result.times.denoise == 0.7, "the reply says how long the picture took, with its mates"
    (first, one), (second, two) = await started(engine), await started(engine)
    async with asyncio.timeout(5):
        # What the running one has left shrinks while the test looks. The first was alone: not quite half.
        assert 0.5 <= engine.status().predicted_queue_s <= 1.8
        for each in (one, two):
            each.future.set_result(output(each.job))
        await asyncio.gather(first, second)
