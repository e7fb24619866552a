"""A body that carries pictures, a form or JSON: read within bounds, and parsed off the event loop."""

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
    """What ``of_form`` or ``of_json`` makes of the body of ``http``; it has its place in the room until the block ends.

    Both run in a thread of the room: a hostile body costs those a turn who bring pictures, and holds up nobody else.

    Args:
        most_files: of a form.
        texts: the fields of a form that are text whatever they look like.

    Raises:
        RequestError: what is wrong with the body; 503 where there is no room for it now.
    """
    room, most = context.pictures, context.service.max_upload_bytes
    raw, coding = await read_upload(http, most, context.uploads)
    content_type = http.headers["content-type"]

    def read() -> Made:
        if content_type.lower().lstrip().startswith("multipart/"):
            return of_form(form_of(inflated(raw, coding, most), content_type, texts, most_files))
        return of_json(decoded(raw, coding, most))

    with room.place(most if coding else len(raw)):  # what is packed may become as large as anything
        yield await room.run(read)
