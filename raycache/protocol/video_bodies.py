"""Bodies of HTTP requests for videos, as JSON or as a form."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, WithJsonSchema, field_validator

from raycache.protocol.edit_bodies import IMAGE_SCHEMA, file_of, text_of
from raycache.protocol.videos import VideoFields, VideoRequest

__all__ = ["VideoBody"]


class VideoBody(VideoFields):
    """Body of ``POST /v1/videos``. In a multipart form ``input_reference`` is a file."""

    input_reference: Annotated[str | None, WithJsonSchema(IMAGE_SCHEMA)] = Field(
        default=None, repr=False, description="The image that the video starts with: base64 or a data URL."
    )

    @field_validator("input_reference", mode="before")
    @classmethod
    def _text(cls, value: Any) -> str:
        return text_of("input_reference", value)

    def reference_file(self) -> bytes | None:
        """The file of the image in the body, if there is one.

        Raises:
            RequestError: 400: it is another kind of URL, or not base64.
        """
        return None if self.input_reference is None else file_of("input_reference", self.input_reference)

    def video(self, image: np.ndarray | None) -> VideoRequest:
        """The part that determines the video, with the decoded image."""
        given = {name: getattr(self, name) for name in VideoRequest.model_fields}
        return VideoRequest.model_validate({**given, "input_reference": image})

    def ignored(self) -> list[str]:
        """One warning for each field that was set and has no effect."""
        idle = ("response_format", "output_format", "output_compression", "partial_images")
        return [f"`{name}` has no effect on a video" for name in idle if name in self.model_fields_set]
