"""Requests that start from pictures: image to image, edit by instruction, inpainting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from pydantic import ConfigDict, Field, SkipValidation, field_validator

from raycache.protocol.errors import invalid
from raycache.protocol.job import JobInputs
from raycache.protocol.pictures import PictureSource, as_mask, as_picture
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.tasks import task_of

__all__ = ["EditRequest"]


class EditRequest(GenerationRequest):
    """One request for ``n`` images made from other pictures.

    Its fields select the task: inpainting with ``mask``, else image to image with ``strength``, else an edit by the
    prompt's instruction. If the model has image to image but no edit, the latter becomes image to image with
    :data:`raycache.protocol.tasks.USUAL_STRENGTH`.

    Files are read and decoded when the request is made, so a ``Path`` is a path on the caller's machine, and handles
    transfer pixels.

    Raises:
        RequestError: 400: a picture cannot be read.
        OSError: a file cannot be read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: SkipValidation[PictureSource | Sequence[PictureSource]] = Field(
        repr=False, description="One picture or several; if several, the first is the one to change."
    )
    mask: SkipValidation[PictureSource | None] = Field(
        default=None, repr=False, description="The area of the first picture that is generated again."
    )
    strength: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False, description="The share of the first picture that is given up."
    )

    @field_validator("image", mode="before")
    @classmethod
    def _pictures(cls, value: Any) -> tuple[np.ndarray, ...]:
        sources = list(value) if isinstance(value, list | tuple) else [value]
        if not sources:
            raise invalid("image", "an edit needs a picture, at least one")
        if len(sources) == 1:
            return (as_picture(sources[0]),)
        return tuple(as_picture(source, f"image[{index}]") for index, source in enumerate(sources))

    @field_validator("mask", mode="before")
    @classmethod
    def _mask(cls, value: Any) -> np.ndarray | None:
        return None if value is None else as_mask(value)

    def inputs(self) -> JobInputs:
        """The pictures, and their task."""
        return JobInputs(
            task=task_of(mask=self.mask is not None, strength=self.strength),
            pictures=cast(tuple[np.ndarray, ...], self.image),
            mask=cast(np.ndarray | None, self.mask),
            strength=self.strength,
        )
