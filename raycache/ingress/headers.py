"""Options in a request's headers: raw bytes in place of JSON, a deadline, an asynchronous answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import invalid
from raycache.protocol.formats import MEDIA_TYPES, Format
from raycache.protocol.schemas import GenerationRequest

if TYPE_CHECKING:
    from starlette.datastructures import Headers

__all__ = ["wanted_media", "wants_later", "with_header_timeout"]

_TIMEOUT_HEADER = "x-request-timeout-seconds"
#: The part of that time that is reserved for sending the answer: after it Serve sends a 408 in plain text.
_ANSWER_S, _ANSWER_SHARE = 1.0, 0.2


def wanted_media(headers: Headers, body: ImagesBody) -> Format | None:
    """The image format that ``Accept`` requests instead of JSON.

    Raises:
        RequestError: 400 if raw bytes cannot carry what was requested.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in headers.get("accept", "").split(",")]
    raw = next((name for name, media in MEDIA_TYPES.items() if media in accepted), None)
    if raw is None or "application/json" in accepted:
        return None
    if body.n != 1 or body.stream:
        raise invalid("n" if body.n != 1 else "stream", f"`Accept: {MEDIA_TYPES[raw]}` is for one image, unstreamed")
    return raw


def wants_later(headers: Headers, body: ImagesBody) -> bool:
    """Whether ``Prefer: respond-async`` (RFC 7240) requests a stored job instead of the images.

    Raises:
        RequestError: 400 together with ``stream``: nobody would read it.
    """
    preferred = [part.partition(";")[0].strip().lower() for part in ",".join(headers.getlist("prefer")).split(",")]
    if "respond-async" not in preferred:
        return False
    if body.stream:
        raise invalid("stream", "`Prefer: respond-async` stores the images for later, and cannot stream", ["false"])
    return True


def with_header_timeout(request: GenerationRequest, headers: Headers, most_s: float) -> GenerationRequest:
    """Serve ends a request after ``x-request-timeout-seconds`` by itself; the engine must know it, too.

    A value above ``most_s`` is not an error: the client is only more patient than necessary.

    Raises:
        RequestError: 400 if the header is not a positive number.
    """
    value = headers.get(_TIMEOUT_HEADER)
    if value is None:
        return request
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise invalid(_TIMEOUT_HEADER, "must be a positive number of seconds")
    seconds -= min(_ANSWER_S, _ANSWER_SHARE * seconds)
    return request.model_copy(update={"timeout_s": min(request.timeout_s or most_s, seconds)})
