"""A body that may contain images, a form or JSON: read within bounds, and parsed off the event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request

from raycache.front.bodies import decoded, inflated, read_upload
from raycache.ingress.dependencies import Context
from raycache.ingress.forms import Form, form_of

__all__ = ["upload"]

Made = TypeVar("Made")


@asynccontextmanager
async def upload(
    http: Request,
    context: Context,
    most_files: int,
    texts: frozenset[str],
    of_form: Callable[[Form], Made],
    of_json: Callable[[bytes], Made],
) -> AsyncGenerator[Made, None]:
    """The result of ``of_form`` or ``of_json`` for the body of ``http``, which keeps its place until the block ends.

    Both run in the threads for images: a hostile body delays other requests with images, but no others.

    Args:
        most_files: maximum number of files of a form.
        texts: fields of a form that are always text.

    Raises:
        RequestError: an error in the body; 503 if there is no memory for it now.
    """
    room, most = context.images, context.service.max_upload_bytes
    raw, coding = await read_upload(http, most, context.uploads)
    content_type = http.headers["content-type"]

    def read() -> Made:
        if content_type.lower().lstrip().startswith("multipart/"):
            return of_form(form_of(inflated(raw, coding, most), content_type, texts, most_files))
        return of_json(decoded(raw, coding, most))

    with room.place(most if coding else len(raw)):  # a compressed body may become as large as the limit
        yield await room.run(read)
