"""What images hold in an ingress is bounded, whoever sends them and whatever becomes of the request."""

from __future__ import annotations

import asyncio
import gc
import threading

import numpy as np
import pytest

from raycache.ingress.image_room import ImageRoom
from raycache.limits import LimitSettings
from raycache.protocol.errors import RequestError
from tests.helpers.image_files import file, scene

LIMITS = LimitSettings()
IMAGE = ("image", file(scene()))
MASK = ("mask", file(np.full((16, 24), 255, np.uint8)))
BYTES = 16 * 24 * 3


async def holds(room: ImageRoom, size: int) -> None:
    """The loop has what it woke a task with until it runs again, and the thread that decoded until it gets its turn."""
    for _ in range(500):
        gc.collect()
        if room.held == size:
            return
        await asyncio.sleep(0.01)
    assert room.held == size


@pytest.mark.slow
async def test_pixels_count_for_as_long_as_somebody_has_them():
    room = ImageRoom(most_bytes=2 * BYTES + 10)
    first, mask = await room.decoded([IMAGE], None, LIMITS)
    assert mask is None
    assert room.held == BYTES
    second = await room.decoded([IMAGE], None, LIMITS)
    with pytest.raises(RequestError) as caught:
        await room.decoded([IMAGE], None, LIMITS)
    assert (caught.value.status, caught.value.code) == (503, "too_many_images")
    assert caught.value.retry_after_s
    del first, caught
    await holds(room, BYTES)
    third = await room.decoded([IMAGE], None, LIMITS)
    del second, third
    await holds(room, 0)


async def test_who_is_alone_has_the_limits_of_the_settings_only():
    room = ImageRoom(most_bytes=1, most_body_bytes=1)
    with room.place(1000):
        images, mask = await room.decoded([IMAGE, IMAGE], MASK, LIMITS)
        assert [image.shape for image in images] == [(16, 24, 3)] * 2
        assert mask.shape == (16, 24)
        with pytest.raises(RequestError, match="take up all memory for images"), room.place(1):
            pass
    with room.place(1000):
        pass


@pytest.mark.slow
async def test_what_failed_holds_nothing():
    room = ImageRoom()
    broken = ("image", IMAGE[1][:70])
    for files in ([IMAGE, broken], [("image", b"")]):
        with pytest.raises(RequestError):
            await room.decoded(files, None, LIMITS)
    await holds(room, 0)


async def test_few_decode_at_once_and_the_loop_goes_on():
    room, most, now, lock = ImageRoom(threads=2), 0, 0, threading.Lock()
    go = threading.Event()

    def work() -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        go.wait(20)
        with lock:
            now -= 1
        return threading.get_ident()

    calls = [asyncio.ensure_future(room.run(work)) for _ in range(6)]
    while most < 2:
        await asyncio.sleep(0.01)
    calls.pop().cancel()  # its client left while it waited
    go.set()
    threads = await asyncio.gather(*calls)
    assert most == 2
    assert threading.get_ident() not in threads
