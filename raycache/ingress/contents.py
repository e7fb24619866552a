"""Files of the store over HTTP: complete or in part, so that players can seek and downloads can resume."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from raycache.protocol.errors import RequestError
from raycache.protocol.stored import StoredFile, StoredJob

__all__ = ["byte_range", "content", "result_file"]

#: Bytes of a file that pass through the ingress at a time.
_CHUNK = 1 << 20
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.IGNORECASE)


def result_file(job: StoredJob, what: str) -> StoredFile:
    """One file of a finished job.

    Raises:
        RequestError: 409 if there is no result yet or will be none, 404 for a file that it does not have.
    """
    if job.status != "completed":
        why = f": {job.error.message}" if job.error else ""
        raise RequestError(409, f"{job.id} is {job.status} and has no content{why}", None, "not_completed")
    if what not in job.files:
        raise RequestError(404, f"{job.id} has no {what[:80]!r}; it has {', '.join(job.files)}", None, "not_found")
    return job.files[what]


async def content(
    http: Request, job: StoredJob, file: StoredFile, read: Callable[[int, int], Awaitable[bytes]]
) -> Response:
    """The answer to a GET or HEAD of ``file``, a part of it if the headers request one.

    Args:
        http: the request.
        job: the job of the file.
        file: the file to send.
        read: reads bytes of it, from an offset and a length.

    Raises:
        RequestError: 416 for a range after its end; errors of ``read``.
    """
    tag = f'"{job.id}-{file.name}"'  # files of a finished job never change
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
    first = await read(start, min(_CHUNK, end - start))  # its errors can still become a status
    return StreamingResponse(_chunks(first, start, end, read), 206 if part else 200, headers, file.media_type)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and end of the ``Range`` requested; None for all: unsupported ranges may be ignored.

    Raises:
        RequestError: 416 if it starts after the end.

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
