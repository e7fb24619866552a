"""From the body of a video request to the request: a form or JSON, and its optional image."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from raycache.ingress.dependencies import Context, body_document, parse_body, parse_fields
from raycache.ingress.forms import Form, text_fields
from raycache.ingress.upload_reader import upload
from raycache.protocol.errors import invalid
from raycache.protocol.tasks import check_task
from raycache.protocol.video_bodies import VideoBody
from raycache.protocol.videos import VideoRequest

__all__ = ["read_video", "video_document"]

_IMAGE = "input_reference"
_TEXTS = text_fields(VideoBody)


async def read_video(http: Request, context: Context) -> tuple[VideoBody, VideoRequest]:
    """The requested video, with its image decoded; requests that the model cannot fulfil are refused before that.

    Raises:
        RequestError: an error in the body, a field or the image; 503 if there is no memory for it now.
    """
    service = context.service
    async with upload(http, context, 1, _TEXTS, _of_form, _of_json) as (body, file):
        if (model := service.capabilities_of(body.model)) is not None:
            check_task("image-to-video" if file else "text-to-video", int(bool(file)), model)
        if file is None:
            return body, body.video(None)
        (image,), _ = await context.images.decoded([(_IMAGE, file)], None, service.limits_of(body.model))
        return body, body.video(image)


def _of_form(form: Form) -> tuple[VideoBody, bytes | None]:
    files = form.files.pop(_IMAGE, [])
    for name in form.files:
        raise invalid(name, "takes no file", [_IMAGE], "unknown_parameter")
    if files and _IMAGE in form.fields:
        raise invalid(_IMAGE, "is given both as a file and as text")
    body = parse_fields(VideoBody, form.fields)
    return body, files[0] if files else body.reference_file()


def _of_json(raw: bytes) -> tuple[VideoBody, bytes | None]:
    body = parse_body(VideoBody, raw)
    return body, body.reference_file()


def video_document() -> dict[str, Any]:
    """The OpenAPI description of the body: JSON, or the same as a form with the image as a file."""
    document = body_document(VideoBody)
    content = document["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    file = {"description": "The image that the video starts with.", "type": "string", "format": "binary"}
    form = {**schema, "properties": {**schema["properties"], _IMAGE: file}}
    content["multipart/form-data"] = {"schema": form}
    return document
