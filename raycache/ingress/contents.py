"""Files of the store over HTTP: whole or in part, so that players can seek and downloads can resume."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from raycache.protocol.errors import RequestError
from raycache.protocol.stored import StoredFile, StoredJob

__all__ = ["byte_range", "content", "result_file"]

#: Bytes of a file that pass through the ingress at once.
_CHUNK = 1 << 20
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


def result_file(job: StoredJob, what: str) -> StoredFile:
    """One file of a job that is done.

    Raises:
        RequestError: 409 while there is no result or when there will be none, 404 for a file that it does not have.
    """
    if job.status != "completed":
        why = f": {job.error.message}" if job.error else ""
        raise RequestError(409, f"{job.id} is {job.status} and has no content{why}", None, "not_completed")
    if what not in job.files:
        raise RequestError(404, f"{job.id} has no {what[:80]!r}; it has: {', '.join(job.files)}", None, "not_found")
    return job.files[what]


async def content(
    http: Request, job: StoredJob, file: StoredFile, read: Callable[[int, int], Awaitable[bytes]]
) -> Response:
    """The answer to a GET or HEAD of ``file``, in part where the headers say so.

    Args:
        http: the request.
        job: whose file it is.
        file: which.
        read: bytes of it, from a first one, so many.

    Raises:
        RequestError: 416 for a range behind its end; what ``read`` raises.
    """
    tag = f'"{job.id}-{file.name}"'  # of a job that is done nothing changes
    headers = {
        "accept-ranges": "bytes",
        "etag": tag,
        "cache-control": "private",
        "content-disposition": f'inline; filename="{job.id}-{file.name}"',
        "x-content-type-options": "nosniff",
    }
    asked = http.headers.get("range") if http.headers.get("if-range", tag) == tag else None
    part = byte_range(asked, file.bytes) if http.method == "GET" else None
    start, end = part or (0, file.bytes)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    headers["content-length"] = str(end - start)
    if http.method == "HEAD":
        return Response(headers=headers, media_type=file.media_type)
    first = await read(start, min(_CHUNK, end - start))  # what it raises still is a status
    return StreamingResponse(_chunks(first, start, end, read), 206 if part else 200, headers, file.media_type)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one behind the last that ``Range`` asks for; None for all: one may ignore what is odd.

    Raises:
        RequestError: 416 when it begins behind the end.

    >>> byte_range("bytes=0-1", 10), byte_range("bytes=-3", 10), byte_range("bytes=4-", 10), byte_range("lines=1", 10)
    ((0, 2), (7, 10), (4, 10), None)
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start, end = int(match[1]), int(match[2] or size) + 1
        if end <= start:
            return None
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size:
        raise RequestError(416, f"range: the content has {size} bytes", "range", "invalid_range")
    return start, min(end, size)


async def _chunks(
    first: bytes, start: int, end: int, read: Callable[[int, int], Awaitable[bytes]]
) -> AsyncIterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        start += len(chunk)
        chunk = await read(start, min(_CHUNK, end - start)) if start < end else b""
