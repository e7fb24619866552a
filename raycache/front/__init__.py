"""Middleware in Serve's own HTTP proxy: bounds and checks before a request reaches a replica.

Serve's proxy reads headers and bodies without bounds, decodes some headers in a way that fails, and answers in plain
text when an ingress has died. It loads what ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names: set it to
:data:`CALLBACK` where Ray is started, as the Dockerfile and ``make serve`` do. It applies to all applications of that
Ray.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable

import uvicorn.config
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycache.front.bodies import UPLOAD_S, Bodies, read_whole, upload_bodies
from raycache.limits import MOST_UPLOAD
from raycache.protocol.errors import RequestError, internal_error, unavailable
from raycache.protocol.request_ids import clean

__all__ = ["CALLBACK", "VARIABLE", "Front", "middlewares"]

logger = logging.getLogger("ray.serve")

VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "raycache.front:middlewares"

#: Limits of one request: number and bytes of headers, bytes of its address, bytes of its body for any engine.
_MOST_HEADERS, _MOST_HEADER_BYTES, _MOST_ADDRESS, _MOST_BODY = 100, 32 << 10, 8 << 10, 16 << 20
_BODY_S = 30.0
#: Paths, after the application's prefix, whose bodies may contain images; they are counted separately.
_UPLOADS = ("/v1/images/edits", "/v1/videos")
#: After this time Serve's router knows that an ingress is dead: it uses another, or holds requests until one is ready.
_INGRESS_DIED_S = 2.0
#: Serve decodes this header as UTF-8, and fails if it is not.
_SESSION = os.environ.get("RAY_SERVE_SESSION_ID_HEADER_KEY", "x-session-id").lower().replace("-", "_").encode()
_DECODED = {b"x_request_timeout_seconds", b"serve_multiplexed_model_id", b"traceparent", _SESSION}
#: With it a job would run to its end even if its client disconnects. It is for Serve's internal use.
_DROPPED = {b"x-request-disconnect-disabled"}


def middlewares() -> list[Middleware]:
    """The middlewares for Serve's proxy; called in the proxy's process before its server is created."""
    # Serve leaves the choice to uvicorn ("auto") and has no option for it.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "raycache.front.http_protocol:BoundedProtocol"
    return [Middleware(Front)]


class Front:
    """Passes on complete requests within bounds, and gives Serve's own errors OpenAI's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._bodies, self._uploads = app, Bodies(), upload_bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        scope = {**scope, "headers": list(_cleaned(scope["headers"]))}
        if scope["type"] == "websocket" or scope["path"].startswith("/-/"):  # Serve's own health and routes
            return await self._app(scope, receive, send)
        answer = _Answer(send)
        try:
            upload = scope["path"].endswith(_UPLOADS)
            _check(scope, most_body := MOST_UPLOAD if upload else _MOST_BODY)
            if _has_body(scope):
                patience, place = (UPLOAD_S, self._uploads) if upload else (_BODY_S, self._bodies)
                receive = _again(await read_whole(receive, most_body, patience, place), receive)
            await self._app(scope, receive, answer)
            error = unavailable("the ingress died; try again", _INGRESS_DIED_S, "ingress_died")
        except RequestError as refused:
            if refused.code == "client_gone":
                return None
            error = refused
        except Exception:
            logger.exception("Serve's proxy failed")
            error = internal_error()
        if not answer.started:
            await answer.error(error)


class _Answer:
    """The answer to the client; converts Serve's plain text to an error in OpenAI's shape."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send
        self._held: Message | None = None
        self._text = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if (
                message["status"] >= 400
                and Headers(raw=message["headers"]).get("content-type", "")[:10] == "text/plain"
            ):
                self._held = message
                return
            self.started = True
        if self._held is None:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._text = (self._text + message.get("body", b""))[:1000]
            if not message.get("more_body"):
                held, text = self._held, self._text.decode(errors="replace")
                headers = Headers(raw=held["headers"])
                await self.error(_of_serve(held["status"], text, headers.get("retry-after")), held["headers"])

    async def error(self, error: RequestError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        body = json.dumps(error.body()).encode()
        start: Message = {"type": "http.response.start", "status": error.status, "headers": list(headers)}
        fields = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
        MutableHeaders(scope=start).update(fields)
        self.started, self._held = True, None
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _of_serve(status: int, text: str, retry_after: str | None) -> RequestError:
    if status in (429, 503):
        seconds = float(retry_after) if retry_after and retry_after.isdecimal() else _INGRESS_DIED_S
        return RequestError(status, text, None, "queue_full" if status == 429 else "not_ready", seconds)
    return RequestError(status, text, None, "deadline_exceeded" if status == 408 else "http_error")


def _cleaned(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        if name == b"x-request-id":
            value = clean(value.decode(errors="replace")).encode()
            if not value:
                continue  # Serve creates one
        elif name.replace(b"-", b"_") in _DECODED:
            value = value.decode(errors="replace").encode()
        elif name in _DROPPED:
            continue
        yield name, value


def _check(scope: Scope, most_body: int) -> None:
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > _MOST_HEADERS or size > _MOST_HEADER_BYTES:
        wanted = f"at most {_MOST_HEADERS} headers of {_MOST_HEADER_BYTES} bytes in total are allowed"
        raise RequestError(431, f"{len(headers)} headers of {size} bytes; {wanted}", None, "headers_too_large")
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _MOST_ADDRESS:
        raise RequestError(414, f"the address is longer than {_MOST_ADDRESS} bytes", None, "address_too_long")
    length = dict(headers).get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most_body:
        raise RequestError(413, f"the body is larger than {most_body} bytes", None, "body_too_large")


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0") != b""


def _again(body: bytes, receive: Receive) -> Receive:
    """Replay the body that was read, then pass on what the client does next: disconnect."""
    unread = [body]

    async def replayed() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await receive()

    return replayed
