"""One request to an ASGI application, message by message, as a server would pass it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

URL = "/v1/images/generations"


class Wire:
    """A running request: ``send`` and ``leave`` are the client's side, the rest is the application's answer.

    Args:
        app: the application; its call starts immediately as a task.
        path: path of the request.
        method: HTTP method.
        headers: as bytes or text, before ``content-type: application/json``.
    """

    def __init__(self, app: Any, path: str = URL, method: str = "POST", headers: Any = ()) -> None:
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.messages: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        encoded = [tuple(part.encode() if isinstance(part, str) else part for part in pair) for pair in headers]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [*encoded, (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 8000),
        }
        self.scope = scope
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self._take))

    def send(self, body: bytes, more: bool = False) -> Wire:
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def leave(self) -> Wire:
        self._inbox.put_nowait({"type": "http.disconnect"})
        return self

    async def done(self, seconds: float = 20.0) -> Wire:
        await asyncio.wait_for(self.task, seconds)
        return self

    async def until(self, text: str, seconds: float = 20.0) -> Wire:
        """Wait until the answer contains ``text``."""
        async with asyncio.timeout(seconds):
            while text not in self.text:
                self.arrived.clear()
                await self.arrived.wait()
        return self

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), None)

    @property
    def headers(self) -> dict[str, str]:
        pairs = next((m["headers"] for m in self.messages if m["type"] == "http.response.start"), [])
        return {bytes(name).decode().lower(): bytes(value).decode("latin-1") for name, value in pairs}

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body").decode()

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.text)["error"]

    async def _take(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.arrived.set()


def asked(app: Any, **fields: Any) -> Wire:
    """A complete request for an image."""
    return Wire(app).send(json.dumps({"prompt": "a circle", **fields}).encode())
