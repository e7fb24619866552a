"""Bodies of HTTP requests that contain images, as JSON or as a form."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator

from raycache.protocol.bodies import ImagesBody
from raycache.protocol.edits import EditRequest
from raycache.protocol.errors import RequestError, invalid

__all__ = ["IMAGE_SCHEMA", "MOST_FILES", "EditBody", "file_of", "missing_image", "text_of"]

#: Maximum images of a request for any model, as in OpenAI's API.
MOST_FILES = 16

_WAYS = "send it as base64, as a data URL, or as a file in multipart/form-data"

_TEXT: dict[str, Any] = {"type": "string"}
_REFERENCE: dict[str, Any] = {"type": "object", "properties": {"image_url": _TEXT}, "required": ["image_url"]}
#: The OpenAPI schema of one image in JSON.
IMAGE_SCHEMA: dict[str, Any] = {"anyOf": [_TEXT, _REFERENCE]}
_LIST: dict[str, Any] = {"type": "array", "items": IMAGE_SCHEMA}


class EditBody(ImagesBody):
    """Body of ``POST /v1/images/edits``: a request, its images, and other fields that OpenAI's clients send.

    In a multipart form ``image`` (also ``image[]``) and ``mask`` are files; in JSON they are base64 or data URLs.
    """

    events: ClassVar[str] = "image_edit"

    image: Annotated[list[str] | None, WithJsonSchema({"anyOf": [*IMAGE_SCHEMA["anyOf"], _LIST]})] = Field(
        default=None, repr=False, description="Base64 or a data URL of a png, jpeg or webp, or a list of them."
    )
    images: Annotated[list[str] | None, WithJsonSchema(_LIST)] = Field(
        default=None, repr=False, description="Instead of `image`, as in OpenAI's JSON requests."
    )
    mask: Annotated[str | None, WithJsonSchema(IMAGE_SCHEMA)] = Field(
        default=None,
        repr=False,
        description="Transparent pixels (or white ones, if all are opaque) are generated again; as large as the first "
        "image.",
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the image is replaced, for image to image and inpainting; only this part of the steps "
        "is run.",
    )
    markup: str | None = Field(default=None, description="Refused.")
    input_fidelity: str | None = Field(default=None, description="Accepted and ignored with a warning.")

    @field_validator("image", "images", mode="before")
    @classmethod
    def _texts(cls, value: Any, info: ValidationInfo) -> list[str]:
        name = str(info.field_name)
        if isinstance(value, list):
            return [text_of(f"{name}[{index}]", each) for index, each in enumerate(value)]
        return [text_of(name, value)]

    @field_validator("mask", mode="before")
    @classmethod
    def _mask_text(cls, value: Any) -> str:
        return text_of("mask", value)

    @field_validator("markup", mode="before")
    @classmethod
    def _no_markup(cls, value: Any) -> None:
        raise invalid("markup", "not supported here; describe the change in `prompt`, or mark it with `mask`")

    def image_texts(self) -> list[tuple[str, str]]:
        """Field and text of each image; empty if the body has none.

        Raises:
            RequestError: 400: given in both fields.
        """
        if self.image and self.images:
            raise invalid("images", "was given together with `image`; give one of them")
        name, texts = ("images", self.images) if self.images else ("image", self.image or [])
        return [(name if len(texts) == 1 else f"{name}[{index}]", text) for index, text in enumerate(texts)]

    def edit(self, images: tuple[np.ndarray, ...], mask: np.ndarray | None) -> EditRequest:
        """The part that determines the image, with the decoded images."""
        given = {name: getattr(self, name) for name in EditRequest.model_fields}
        return EditRequest.model_validate({**given, "image": images, "mask": mask})

    def ignored(self) -> list[str]:
        """One warning for each field that was set and has no effect."""
        idle = self.input_fidelity in (None, "low")
        return super().ignored() + ([] if idle else ["`input_fidelity` has no effect on this server"])


def file_of(field: str, text: str) -> bytes:
    """The file in base64 or a data URL.

    Raises:
        RequestError: 400: another kind of URL, or not base64.
    """
    head, comma, data = text.partition(",")
    if head[:5].lower() == "data:":
        if not comma or not head.lower().endswith(";base64"):
            raise invalid(field, "a data URL must be `data:image/png;base64,...`")
        text = data
    elif "://" in text[:16]:
        raise invalid(field, f"this server does not download images; {_WAYS}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(field, f"is not base64; {_WAYS}") from None


def text_of(field: str, given: Any) -> str:
    """The text of one image, given as text or in OpenAI's object.

    Raises:
        RequestError: 400: it is neither.
    """
    if isinstance(given, dict):
        if "file_id" in given:
            raise invalid(f"{field}.file_id", f"this server stores no files; {_WAYS}")
        for name in given.keys() - {"image_url"}:
            raise invalid(f"{field}.{name}"[:80], "unknown field", ["image_url"], "unknown_parameter")
        field, given = f"{field}.image_url", given.get("image_url")
    if not isinstance(given, str):
        raise invalid(field, f"must be text; {_WAYS}")
    return given


def missing_image() -> RequestError:
    """400: an edit without an image."""
    return invalid("image", f"an edit needs an image; {_WAYS}", code="missing_required_parameter")
