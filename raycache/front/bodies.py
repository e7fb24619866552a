"""Request bodies: read within bounds of size, time and number, and decompressed.

Who never ends a body costs others nothing: slow bodies are few and hold few bytes, and the slowest gives its place to
whoever comes. A body that comes at once takes nobody's place.
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

#: Bodies of one process that may take their time; all of them, those that just came too; and the bytes they hold.
_SLOW, _MOST, _MOST_BYTES = 256, 2048, 64 << 20
#: The same where bodies bring pictures; and the seconds that one of them may take.
_SLOW_UPLOADS, _MOST_UPLOADS, _MOST_UPLOAD_BYTES = 32, 128, 256 << 20
UPLOAD_S = 120.0
#: Seconds in which a body is no slow one: it is rather part of a burst than of somebody who never ends.
_YOUNG_S = 1.0
#: Names of `Content-Encoding` that are undone, with zlib's window bits.
_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}


@dataclass(eq=False)
class _Body:
    patience: asyncio.Timeout
    began: float = field(default_factory=time.monotonic)
    data: bytearray = field(default_factory=bytearray)
    ousted: bool = False


class Bodies:
    """Those under way in this process, oldest first.

    Args:
        slow: how many may take longer than a second.
        most: all at most.
        most_bytes: what all of them hold at most; a single one is bounded by the caller.
    """

    def __init__(self, slow: int = _SLOW, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._slow, self._most, self._most_bytes, self._bytes = slow, most, most_bytes, 0
        self._open: dict[_Body, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, patience: asyncio.Timeout) -> _Body:
        """A place for a new one, which may be that of a slow one.

        Args:
            patience: what the new one is read under; ends early when it must give its place to another.

        Raises:
            RequestError: 503 when there is none.
        """
        self._trim(self._slow - 1)
        if len(self._open) >= self._most:
            raise _crowded()
        body = _Body(patience)
        self._open[body] = None
        if len(self._open) > self._slow:  # nobody else may come to oust it when it is a slow one
            asyncio.get_running_loop().call_later(_YOUNG_S, self._trim, self._slow)
        return body

    def grow(self, body: _Body, chunk: bytes) -> None:
        """One more chunk of it; where all together would hold too much, the largest gives way to a smaller one.

        Raises:
            RequestError: 503 when it is the largest itself.
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
        """It is over, one way or another; its bytes count no more."""
        if body in self._open:
            del self._open[body]
            self._bytes -= len(body.data)

    def _trim(self, number: int) -> None:
        """The oldest go until there are ``number``, if they are slow ones."""
        while len(self._open) > number:
            oldest = next(iter(self._open))
            if time.monotonic() - oldest.began < _YOUNG_S:
                return
            self._oust(oldest)

    def _oust(self, body: _Body) -> None:
        self.leave(body)
        body.ousted, body.data = True, bytearray()
        if not body.patience.expired():  # it may be over, and not know it yet
            body.patience.reschedule(asyncio.get_running_loop().time())


async def read_whole(receive: Receive, limit: int, seconds: float, bodies: Bodies) -> bytes:
    """The bytes of one request's body.

    Raises:
        RequestError: 413 above ``limit`` bytes; 408 when it does not end within ``seconds``; 503 when it had to give
            its place to another; 400 when its sender left.
    """
    body: _Body | None = None
    try:
        async with asyncio.timeout(seconds) as patience:
            body = bodies.enter(patience)
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # Nobody reads this answer. Unanswered, it would be a traceback in the log for everyone who left.
                    raise RequestError(400, "the client left before its body ended", None, "client_gone")
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
    if body.ousted:  # also where its last chunk came at that very moment: those before are gone
        raise _crowded()
    return bytes(body.data)


async def read_body(http: Request, limit: int, seconds: float, bodies: Bodies) -> bytes:
    """The body as it was meant: at most ``limit`` bytes of UTF-8, also after its encodings are undone.

    Raises:
        RequestError: as :func:`read_whole`; 415 for anything but JSON or an encoding we do not know; 400 when its
            encoding is broken.
    """
    _check_media(http, ("application/json",))
    coding = _coding(http)
    return decoded(await read_whole(http.receive, limit, seconds, bodies), coding, limit)


async def read_upload(http: Request, limit: int, bodies: Bodies) -> tuple[bytes, str]:
    """The body of a request that brings pictures, as it came, and the encoding that is to be undone (or none).

    Raises:
        RequestError: as :func:`read_whole`; 415 for anything but a form of parts, JSON, or an encoding we do not know.
    """
    _check_media(http, ("multipart/form-data", "application/json"))
    coding = _coding(http)
    return await read_whole(http.receive, limit, UPLOAD_S, bodies), coding


def upload_bodies() -> Bodies:
    """A process's place for bodies that bring pictures: fewer, and larger."""
    return Bodies(_SLOW_UPLOADS, _MOST_UPLOADS, _MOST_UPLOAD_BYTES)


def inflated(raw: bytes, coding: str, limit: int) -> bytes:
    """``raw`` with ``coding`` undone; empty: it has none.

    Raises:
        RequestError: 400 when it is not what it says, 413 when more than ``limit`` bytes come out.
    """
    return _inflated(raw, coding, limit) if coding else raw


def decoded(raw: bytes, coding: str, limit: int) -> bytes:
    """UTF-8 without a mark: ``coding`` is undone, then what an editor or a Windows tool made of the text.

    Raises:
        RequestError: 400 when it is not what it says, 413 when more than ``limit`` bytes come out.
    """
    raw = inflated(raw, coding, limit)
    encoding = json.detect_encoding(raw)
    if encoding == "utf-8":
        return raw
    try:
        return raw.decode(encoding).encode()
    except UnicodeError:
        raise invalid(None, f"the body begins as {encoding} and is not", ["utf-8"], "invalid_encoding") from None


def _check_media(http: Request, known: Sequence[str]) -> None:
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in known:
        wanted = " or ".join(known)
        raise RequestError(415, f"content-type must be {wanted}, got {media[:80]!r}", None, "unsupported_media")


def _coding(http: Request) -> str:
    """The one of ``Content-Encoding``; empty where there is none."""
    given = [part.strip().lower() for value in http.headers.getlist("content-encoding") for part in value.split(",")]
    codings = [name for name in given if name not in ("", "identity")]
    if len(codings) > 1 or any(name not in _WINDOW for name in codings):
        words = ", ".join(codings)[:80]
        message = f"content-encoding {words!r} is not understood here; send JSON as it is, or one of: gzip, deflate"
        raise RequestError(415, message, "content-encoding", "unsupported_encoding")
    return codings[0] if codings else ""


def _inflated(raw: bytes, coding: str, limit: int) -> bytes:
    """Never more than ``limit`` bytes in memory, whatever a bomb would become."""
    window = _WINDOW[coding]
    if coding == "deflate" and (int.from_bytes(raw[:2], "big") % 31 or (raw[:1] and raw[0] & 15 != 8)):
        window = -15  # many send it without zlib's two bytes in front
    inflater = zlib.decompressobj(window)
    try:
        out = inflater.decompress(raw, limit + 1)
        if len(out) > limit:
            raise _too_large(limit)
        if not inflater.eof:
            raise zlib.error("it ends too early")
        if inflater.unused_data:
            raise zlib.error("something follows its end")
    except zlib.error as error:
        raise invalid(None, f"the body is not {coding}: {error}", code="invalid_encoding") from None
    return out


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", None, "body_too_large")


def _crowded() -> RequestError:
    return unavailable("too many requests have not sent their bodies to the end", _YOUNG_S, "too_many_bodies")
