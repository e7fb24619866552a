"""uvicorn's HTTP protocol with additional bounds: bytes and seconds of a request's head, bytes after its body.

httptools collects a header of any length, for as long as its sender likes, before anybody is asked; so it does with the
fields behind a chunked body. And what is no HTTP is told so in the shape of all other errors.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from raycache.protocol.errors import RequestError

__all__ = ["BoundedProtocol"]

#: Of a head until it ends, more than `raycache.front` lets through, which answers better; and of what is no part of a
#: body between two pieces of it, and behind the last.
_MOST_BYTES = 64 << 10
_SECONDS = 10.0


class BoundedProtocol(HttpToolsProtocol):
    """A connection; while it waits for the end of a head, it is under both bounds."""

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
            self._begin_head()  # uvicorn's own timer for connections that are kept alive ends with any byte
        self._other_bytes += len(data)
        super().data_received(data)
        if self._patience is None and self._other_bytes > _MOST_BYTES:
            limit = f"what stands behind or between the pieces of a body may have {_MOST_BYTES} bytes"
            self._refuse(RequestError(431, limit, None, "headers_too_large"))
        if self._patience is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_BYTES:
                limit = f"the head of a request may have {_MOST_BYTES} bytes"
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
        self._refuse(RequestError(400, "what was sent is no valid HTTP request", None, "invalid_http"))

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
            self.transport.close()  # it never asked anything

    def _refuse(self, error: RequestError) -> None:
        self._end_head()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        # Else it would stand in the middle of another answer.
        free = cycle is None or cycle.response_complete or not cycle.response_started
        if free and not self.pipeline:
            body = json.dumps(error.body()).encode()
            fields = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **error.headers()}.items())
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # nothing may follow this answer
            cycle.message_event.set()
        self.transport.close()
