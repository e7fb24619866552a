"""uvicorn's HTTP protocol with additional bounds: bytes and seconds of a request's head, bytes after its body.

httptools collects a header of any length, for any time, before any application code runs; the same holds for the
fields after a chunked body. And invalid HTTP is answered with an error in the same shape as all others.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from raycache.protocol.errors import RequestError

__all__ = ["BoundedProtocol"]

#: Limit for a head until it ends, more than `raycache.front` accepts, which gives better answers; and for bytes that
#: are not part of a body, between its chunks and after the last one.
_MOST_BYTES = 64 << 10
_SECONDS = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection; both bounds apply while it waits for the end of a head."""

    _patience: asyncio.TimerHandle | None = None
    _head_bytes = _other_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is not None and self.cycle.response_complete:
            self._begin_head()  # uvicorn's own keep-alive timer ends with the first byte
        self._other_bytes += len(data)
        super().data_received(data)
        if self._patience is None and self._other_bytes > _MOST_BYTES:
            limit = f"the bytes between and after the chunks of a body may be {_MOST_BYTES} at most"
            self._refuse(RequestError(431, limit, None, "headers_too_large"))
        if self._patience is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_BYTES:
                limit = f"the head of a request may have {_MOST_BYTES} bytes at most"
                self._refuse(RequestError(431, limit, None, "headers_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        self._other_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._other_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(400, "this is not a valid HTTP request", None, "invalid_http"))

    def _begin_head(self) -> None:
        if self._patience is None:
            self._head_bytes = 0
            self._patience = self.loop.call_later(_SECONDS, self._too_slow)

    def _end_head(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        if self._head_bytes:
            self._refuse(RequestError(408, f"the head did not end within {_SECONDS:g} s", None, "headers_too_slow"))
        else:
            self.transport.close()  # it never sent a request

    def _refuse(self, error: RequestError) -> None:
        self._end_head()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        # Otherwise it would end up in the middle of another answer.
        free = cycle is None or cycle.response_complete or not cycle.response_started
        if free and not self.pipeline:
            body = json.dumps(error.body()).encode()
            fields = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **error.headers()}.items())
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # nothing may be sent after this answer
            cycle.message_event.set()
        self.transport.close()
