"""Request bodies: read within bounds of size, time and number, and decompressed.

A sender that never ends its body costs others nothing: slow bodies are few and hold few bytes, and the slowest gives
its place to a new one. A body that arrives quickly takes no other body's place.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Receive

from raycache.protocol.errors import RequestError, invalid, unavailable

__all__ = ["UPLOAD_S", "Bodies", "decoded", "inflated", "read_body", "read_upload", "read_whole", "upload_bodies"]

#: Limits per process: slow bodies, all bodies including new ones, and the bytes that they hold.
_SLOW, _MOST, _MOST_BYTES = 256, 2048, 64 << 20
#: The same for bodies that may contain images; and the seconds that one of them may take.
_SLOW_UPLOADS, _MOST_UPLOADS, _MOST_UPLOAD_BYTES = 32, 128, 256 << 20
UPLOAD_S = 120.0
#: Seconds before a body counts as slow: until then it is probably part of a burst.
_YOUNG_S = 1.0
#: Supported names of `Content-Encoding`, with zlib's window bits.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


@dataclass(eq=False)
class _Body:
    patience: asyncio.Timeout
    began: float = field(default_factory=time.monotonic)
    data: bytearray = field(default_factory=bytearray)
    ousted: bool = False


class Bodies:
    """The bodies being read in this process, oldest first.

    Args:
        slow: maximum number of bodies that take longer than a second.
        most: maximum number of all bodies.
        most_bytes: maximum bytes of all of them; the caller limits a single one.
    """

    def __init__(self, slow: int = _SLOW, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._slow, self._most, self._most_bytes, self._bytes = slow, most, most_bytes, 0
        self._open: dict[_Body, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, patience: asyncio.Timeout) -> _Body:
        """Add a new body; it may take the place of a slow one.

        Args:
            patience: the time-out for reading it; ends early if it has to give its place to another.

        Raises:
            RequestError: 503 if there is no place.
        """
        self._trim(self._slow - 1)
        if len(self._open) >= self._most:
            raise _crowded()
        body = _Body(patience)
        self._open[body] = None
        if len(self._open) > self._slow:  # no later body may come to replace it once it is slow
            asyncio.get_running_loop().call_later(_YOUNG_S, self._trim, self._slow)
        return body

    def grow(self, body: _Body, chunk: bytes) -> None:
        """Count one more chunk; if all together hold too much, the largest body is dropped.

        Raises:
            RequestError: 503 if it is the largest itself.
        """
        if body.ousted:
            return
        while self._bytes + len(chunk) > self._most_bytes and len(self._open) > 1:
            largest = max((other for other in self._open if other is not body), key=lambda other: len(other.data))
            if len(largest.data) <= len(body.data) + len(chunk):
                raise _crowded()
            self._oust(largest)
        body.data += chunk
        self._bytes += len(chunk)

    def leave(self, body: _Body) -> None:
        """Remove a body, however it ended; its bytes no longer count."""
        if body in self._open:
            del self._open[body]
            self._bytes -= len(body.data)

    def _trim(self, number: int) -> None:
        """Drop the oldest until ``number`` are left, as far as they are slow."""
        while len(self._open) > number:
            oldest = next(iter(self._open))
            if time.monotonic() - oldest.began < _YOUNG_S:
                return
            self._oust(oldest)

    def _oust(self, body: _Body) -> None:
        self.leave(body)
        body.ousted, body.data = True, bytearray()
        if not body.patience.expired():  # it may have timed out already
            body.patience.reschedule(asyncio.get_running_loop().time())


async def read_whole(receive: Receive, limit: int, seconds: float, bodies: Bodies) -> bytes:
    """The bytes of one request's body.

    Raises:
        RequestError: 413 above ``limit`` bytes; 408 if it does not end within ``seconds``; 503 if it had to give
            its place to another; 400 if its sender disconnected.
    """
    body: _Body | None = None
    try:
        async with asyncio.timeout(seconds) as patience:
            body = bodies.enter(patience)
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # The client cannot read this answer, but without it the log would have a traceback.
                    raise RequestError(400, "the client disconnected before its body ended", None, "client_gone")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                if len(body.data) + len(chunk) > limit:
                    raise _too_large(limit)
                bodies.grow(body, chunk)
    except TimeoutError:
        if body is None or not body.ousted:
            raise RequestError(408, f"the body did not end within {seconds:g} s", None, "body_too_slow") from None
    finally:
        if body:
            bodies.leave(body)
    if body.ousted:  # even if its last chunk arrived just then: the earlier ones are gone
        raise _crowded()
    return bytes(body.data)


async def read_body(http: Request, limit: int, seconds: float, bodies: Bodies) -> bytes:
    """The decoded body: at most ``limit`` bytes of UTF-8, also after decompression.

    Raises:
        RequestError: as :func:`read_whole`; 415 for anything but JSON, or for an unknown encoding; 400 if its
            encoding is broken.
    """
    _check_media(http, ("application/json",))
    coding = _coding(http)
    return decoded(await read_whole(http.receive, limit, seconds, bodies), coding, limit)


async def read_upload(http: Request, limit: int, bodies: Bodies) -> tuple[bytes, str]:
    """The raw body of a request that may contain images, and its encoding (empty: none).

    Raises:
        RequestError: as :func:`read_whole`; 415 for anything but a form of parts, JSON, or an unknown encoding.
    """
    _check_media(http, ("multipart/form-data", "application/json"))
    coding = _coding(http)
    return await read_whole(http.receive, limit, UPLOAD_S, bodies), coding


def upload_bodies() -> Bodies:
    """The limits of a process for bodies that may contain images: fewer, and larger."""
    return Bodies(_SLOW_UPLOADS, _MOST_UPLOADS, _MOST_UPLOAD_BYTES)


def inflated(raw: bytes, coding: str, limit: int) -> bytes:
    """``raw`` decompressed from ``coding``; empty: not compressed.

    Raises:
        RequestError: 400 if it is not valid ``coding``, 413 if the result exceeds ``limit`` bytes.
    """
    return _inflated(raw, coding, limit) if coding else raw


def decoded(raw: bytes, coding: str, limit: int) -> bytes:
    """UTF-8 without a byte order mark: decompressed, then converted from the encodings of Windows tools.

    Raises:
        RequestError: 400 if it is not valid in its encoding, 413 if the result exceeds ``limit`` bytes.
    """
    raw = inflated(raw, coding, limit)
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8":
        return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeError:
        raise invalid(None, f"the body starts as {encoding}, but is not valid", ["utf-8"], "invalid_encoding") from None


def _check_media(http: Request, known: Sequence[str]) -> None:
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in known:
        wanted = " or ".join(known)
        raise RequestError(415, f"content-type must be {wanted}, got {media[:80]!r}", None, "unsupported_media")


def _coding(http: Request) -> str:
    """The value of ``Content-Encoding``; empty if there is none."""
    given = [part.strip().lower() for value in http.headers.getlist("content-encoding") for part in value.split(",")]
    codings = [name for name in given if name not in ("", "identity")]
    if len(codings) > 1 or any(name not in _WINDOW for name in codings):
        words = ", ".join(codings)[:80]
        message = f"content-encoding {words!r} is not supported; send JSON uncompressed, or with gzip or deflate"
        raise RequestError(415, message, "content-encoding", "unsupported_encoding")
    return codings[0] if codings else ""


def _inflated(raw: bytes, coding: str, limit: int) -> bytes:
    """Holds at most ``limit`` bytes in memory, even for a decompression bomb."""
    window = _WINDOW[coding]
    if coding == "deflate" and (int.from_bytes(raw[:2], "big") % 31 or (raw[:1] and raw[0] & 15 != 8)):
        window = -15  # many clients send it without zlib's two-byte header
    inflater = zlib.decompressobj(window)
    try:
        out = inflater.decompress(raw, limit + 1)
        if len(out) > limit:
            raise _too_large(limit)
        if not inflater.eof:
            raise zlib.error("it is truncated")
        if inflater.unused_data:
            raise zlib.error("it has extra bytes at its end")
    except zlib.error as error:
        raise invalid(None, f"the body is not {coding}: {error}", code="invalid_encoding") from None
    return out


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", None, "body_too_large")


def _crowded() -> RequestError:
    return unavailable("too many requests are still sending their bodies", _YOUNG_S, "too_many_bodies")
