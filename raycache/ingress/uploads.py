"""From the body of an edit to a request: a form or JSON, its files, decoded images."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from raycache.ingress.dependencies import Context, body_document, parse_body, parse_fields
from raycache.ingress.forms import Form, text_fields
from raycache.ingress.image_room import File
from raycache.ingress.upload_reader import upload
from raycache.protocol.edit_bodies import MOST_FILES, EditBody, file_of, missing_image
from raycache.protocol.edits import EditRequest
from raycache.protocol.errors import invalid
from raycache.protocol.tasks import check_task, task_of

__all__ = ["edit_document", "read_edit"]

_TEXTS = text_fields(EditBody)


@dataclass
class _Upload:
    """A body, and the files sent with it."""

    body: EditBody
    images: list[File]
    mask: File | None


async def read_edit(http: Request, context: Context) -> tuple[EditBody, EditRequest]:
    """The requested edit, with its images decoded.

    Requests that the model cannot fulfil are refused before decoding anything.

    Raises:
        RequestError: an error in the body, a field or an image; 503 if there is no memory for it now.
    """
    service = context.service
    async with upload(http, context, MOST_FILES + 1, _TEXTS, _of_form, _of_json) as brought:
        if not brought.images:
            raise missing_image()
        body, images, mask = brought.body, brought.images, brought.mask
        if len(images) > MOST_FILES:
            raise invalid("image", f"got {len(images)} images, at most {MOST_FILES} are allowed")
        if (model := service.capabilities_of(body.model)) is not None:
            check_task(task_of(mask=mask is not None, strength=body.strength), len(images), model)
        arrays = await context.images.decoded(images, mask, service.limits_of(body.model))
        return body, body.edit(*arrays)


def _of_form(form: Form) -> _Upload:
    images, masks = form.files.pop("image", []), form.files.pop("mask", [])
    for name in form.files:
        # Among the fields it is refused as unknown, or as one that takes no file.
        form.fields.setdefault(name, True)
    if len(masks) > 1 or (masks and "mask" in form.fields):
        raise invalid("mask", "is given twice")
    if images and form.fields.keys() & {"image", "images"}:
        raise invalid("image", "is given both as a file and as text")
    brought = _of_body(parse_fields(EditBody, form.fields))
    names = ["image"] if len(images) == 1 else [f"image[{index}]" for index in range(len(images))]
    brought.images += zip(names, images, strict=True)
    if masks:
        brought.mask = "mask", masks[0]
    return brought


def _of_json(raw: bytes) -> _Upload:
    return _of_body(parse_body(EditBody, raw))


def _of_body(body: EditBody) -> _Upload:
    images = [(name, file_of(name, text)) for name, text in body.image_texts()]
    return _Upload(body, images, None if body.mask is None else ("mask", file_of("mask", body.mask)))


def edit_document() -> dict[str, Any]:
    """The OpenAPI description of the body: JSON, or the same as a form with images as files."""
    document = body_document(EditBody)
    content = document["requestBody"]["content"]
    form = deepcopy(content["application/json"])
    properties, file = form["schema"]["properties"], {"type": "string", "format": "binary"}
    del properties["images"]
    for name, schema in (("image", {"type": "array", "items": file}), ("mask", file)):
        properties[name] = {"description": properties[name]["description"], **schema}
    content["multipart/form-data"] = form
    return document
