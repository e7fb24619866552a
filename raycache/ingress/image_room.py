"""Limits for input images in one process: few are decoded at a time, off the event loop, in bounded memory."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np

from raycache.limits import LimitSettings
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.input_images import OpenedImage, open_image

__all__ = ["File", "ImageRoom"]

#: Requests decoded at a time; bytes of bodies being or waiting to be decoded; bytes of all decoded pixels.
_THREADS, _MOST_BODY_BYTES, _MOST_BYTES = 2, 256 << 20, 1 << 30
_SOON_S = 2.0

#: A field of the request, and the content of its file.
File = tuple[str, bytes]

Given = ParamSpec("Given")
Made = TypeVar("Made")


class ImageRoom:
    """Limits the number of decoding requests, and their memory.

    Args:
        threads: number of threads for decoding.
        most_body_bytes: bytes of bodies that are being parsed or decoded, or wait for that.
        most_bytes: bytes of decoded pixels of all requests not answered yet.

    A request that is alone may exceed both: only the limits of the settings apply to it.
    """

    def __init__(
        self, threads: int = _THREADS, most_body_bytes: int = _MOST_BODY_BYTES, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._most_body_bytes, self._most_bytes = most_body_bytes, most_bytes
        self._body_bytes = self._reserved = 0
        self._alive: list[weakref.ref[np.ndarray]] = []

    @property
    def held(self) -> int:
        """Bytes of pixels that active requests have, or will have when decoded."""
        arrays = [array for array in (ref() for ref in self._alive) if array is not None]
        self._alive = [weakref.ref(array) for array in arrays]
        return self._reserved + sum(array.nbytes for array in arrays)

    @contextmanager
    def place(self, size: int) -> Iterator[None]:
        """Reserve a place for a request with a body of ``size`` bytes, until its images are decoded.

        Raises:
            RequestError: 503 if there is none.
        """
        if self._body_bytes and self._body_bytes + size > self._most_body_bytes:
            raise _crowded()
        self._body_bytes += size
        try:
            yield
        finally:
            self._body_bytes -= size

    async def run(self, work: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs) -> Made:
        """Run ``work`` in one of the few threads, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*args, **kwargs))

    async def decoded(
        self, files: Sequence[File], mask: File | None, limits: LimitSettings
    ) -> tuple[tuple[np.ndarray, ...], np.ndarray | None]:
        """Decode the images, uint8 [height, width, 3], and the mask, uint8 [height, width].

        Raises:
            RequestError: 400: see :mod:`raycache.protocol.input_images`; 503 if other requests hold too much.
        """
        opened = await self.run(_opened, [*files, *([mask] if mask else [])], limits)
        pixels = [each.pixels for each in opened]
        needed = 3 * sum(pixels) - (2 * pixels[-1] if mask else 0)
        with self._reserve(needed):
            arrays = await self.run(_decoded, opened, bool(mask))
            self._alive += map(weakref.ref, arrays)
        return (tuple(arrays[:-1]), arrays[-1]) if mask else (tuple(arrays), None)

    @contextmanager
    def _reserve(self, needed: int) -> Iterator[None]:
        held = self.held
        if held and held + needed > self._most_bytes:
            raise _crowded()
        self._reserved += needed
        try:
            yield
        finally:
            self._reserved -= needed


def _opened(files: Iterable[File], limits: LimitSettings) -> list[OpenedImage]:
    bounds = {"max_bytes": limits.max_input_bytes, "max_pixels": limits.max_input_pixels}
    return [open_image(data, field, **bounds) for field, data in files]


def _decoded(opened: Sequence[OpenedImage], with_mask: bool) -> list[np.ndarray]:
    images = [each.decoded() for each in (opened[:-1] if with_mask else opened)]
    return [*images, opened[-1].decoded_mask()] if with_mask else images


def _crowded() -> RequestError:
    return unavailable("the images of other requests take up all memory for images", _SOON_S, "too_many_images")
