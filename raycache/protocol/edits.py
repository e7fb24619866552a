"""Requests that start from images: image to image, edit by instruction, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from pydantic import ConfigDict, Field, SkipValidation, field_validator

from raycache.protocol.errors import invalid
from raycache.protocol.input_images import ImageSource, as_image, as_mask
from raycache.protocol.job import JobInputs
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.tasks import task_of

__all__ = ["EditRequest"]


class EditRequest(GenerationRequest):
    """One request for ``n`` images made from other images.

    Its fields select the task: inpainting with ``mask``, else image to image with ``strength``, else an edit by the
    prompt's instruction. If the model has image to image but no edit, the latter becomes image to image with
    :data:`raycache.protocol.tasks.USUAL_STRENGTH`.

    Files are read and decoded when the request is made, so a ``Path`` is a path on the caller's machine, and handles
    transfer pixels.

    Raises:
        RequestError: 400: an image cannot be read.
        OSError: a file cannot be read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: SkipValidation[ImageSource | Sequence[ImageSource]] = Field(
        repr=False, description="One image or several; if several, the first is the one to change."
    )
    mask: SkipValidation[ImageSource | None] = Field(
        default=None, repr=False, description="The area of the first image that is generated again."
    )
    strength: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False, description="How much of the first image is replaced, 1 = all."
    )

    @field_validator("image", mode="before")
    @classmethod
    def _images(cls, value: Any) -> tuple[np.ndarray, ...]:
        sources = list(value) if isinstance(value, list | tuple) else [value]
        if not sources:
            raise invalid("image", "an edit needs at least one image")
        if len(sources) == 1:
            return (as_image(sources[0]),)
        return tuple(as_image(source, f"image[{index}]") for index, source in enumerate(sources))

    @field_validator("mask", mode="before")
    @classmethod
    def _mask(cls, value: Any) -> np.ndarray | None:
        return None if value is None else as_mask(value)

    def inputs(self) -> JobInputs:
        """The images, and the task."""
        return JobInputs(
            task=task_of(mask=self.mask is not None, strength=self.strength),
            images=cast(tuple[np.ndarray, ...], self.image),
            mask=cast(np.ndarray | None, self.mask),
            strength=self.strength,
        )
