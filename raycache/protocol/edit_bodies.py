"""Bodies of HTTP requests that carry pictures, as JSON or as a form."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator

from raycache.protocol.bodies import ImagesBody
from raycache.protocol.edits import EditRequest
from raycache.protocol.errors import RequestError, invalid

__all__ = ["MOST_FILES", "PICTURE_SCHEMA", "EditBody", "file_of", "missing_image", "text_of"]

#: Pictures that a request may bring at most, whatever the model takes; as many as OpenAI's API has.
MOST_FILES = 16

_WAYS = "send it as base64, as a data URL, or as a file in multipart/form-data"

_TEXT: dict[str, Any] = {"type": "string"}
_REFERENCE: dict[str, Any] = {"type": "object", "properties": {"image_url": _TEXT}, "required": ["image_url"]}
#: How OpenAPI has one picture in JSON.
PICTURE_SCHEMA: dict[str, Any] = {"anyOf": [_TEXT, _REFERENCE]}
_LIST: dict[str, Any] = {"type": "array", "items": PICTURE_SCHEMA}


class EditBody(ImagesBody):
    """Body of ``POST /v1/images/edits``: a request, its pictures, and what OpenAI's clients may send besides.

    In a form of parts ``image`` (also ``image[]``) and ``mask`` are files; in JSON they are base64 or data URLs.
    """

    events: ClassVar[str] = "image_edit"

    image: Annotated[list[str] | None, WithJsonSchema({"anyOf": [*PICTURE_SCHEMA["anyOf"], _LIST]})] = Field(
        default=None, repr=False, description="Base64 or a data URL of a png, jpeg or webp, or a list of them."
    )
    images: Annotated[list[str] | None, WithJsonSchema(_LIST)] = Field(
        default=None, repr=False, description="In place of `image`, as OpenAI has it in JSON."
    )
    mask: Annotated[str | None, WithJsonSchema(PICTURE_SCHEMA)] = Field(
        default=None,
        repr=False,
        description="What is transparent in it (or white, where nothing is) is drawn anew; as large as the first "
        "picture.",
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the picture is given up, for image to image and inpainting: only steps of that share "
        "are made.",
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
        raise invalid("markup", "this server reads none; say in `prompt`, or with `mask`, what is to change where")

    def picture_texts(self) -> list[tuple[str, str]]:
        """Each picture's field and text; none where the body has none.

        Raises:
            RequestError: 400: given in both fields.
        """
        if self.image and self.images:
            raise invalid("images", "stands beside `image`; give one of them")
        name, texts = ("images", self.images) if self.images else ("image", self.image or [])
        return [(name if len(texts) == 1 else f"{name}[{index}]", text) for index, text in enumerate(texts)]

    def edit(self, pictures: tuple[np.ndarray, ...], mask: np.ndarray | None) -> EditRequest:
        """The part that decides the image, with what was decoded."""
        given = {name: getattr(self, name) for name in EditRequest.model_fields}
        return EditRequest.model_validate({**given, "image": pictures, "mask": mask})

    def ignored(self) -> list[str]:
        """One warning for each field that was set and has no effect."""
        idle = self.input_fidelity in (None, "low")
        return super().ignored() + ([] if idle else ["`input_fidelity` has no effect on this server"])


def file_of(field: str, text: str) -> bytes:
    """The file that base64 or a data URL holds.

    Raises:
        RequestError: 400: another kind of URL, or no base64.
    """
    head, comma, data = text.partition(",")
    if head[:5].lower() == "data:":
        if not comma or not head.lower().endswith(";base64"):
            raise invalid(field, "a data URL must be `data:image/png;base64,...`")
        text = data
    elif "://" in text[:16]:
        raise invalid(field, f"this server fetches nothing from the net; {_WAYS}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(field, f"is no base64; {_WAYS}") from None


def text_of(field: str, given: Any) -> str:
    """Of one picture, that is given as a text or as OpenAI's object around it.

    Raises:
        RequestError: 400: it is neither.
    """
    if isinstance(given, dict):
        if "file_id" in given:
            raise invalid(f"{field}.file_id", f"this server keeps no files; {_WAYS}")
        for name in given.keys() - {"image_url"}:
            raise invalid(f"{field}.{name}"[:80], "unknown field", ["image_url"], "unknown_parameter")
        field, given = f"{field}.image_url", given.get("image_url")
    if not isinstance(given, str):
        raise invalid(field, f"must be a text; {_WAYS}")
    return given


def missing_image() -> RequestError:
    """400: an edit without a picture."""
    return invalid("image", f"an edit needs a picture; {_WAYS}", code="missing_required_parameter")
