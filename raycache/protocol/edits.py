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
    """One request for ``n`` images that are made of others.

    What it brings says the task: with ``mask`` inpainting, else with ``strength`` image to image, else an edit by the
    prompt's instruction. Where the model has image to image and no edit, it is that, with
    :data:`raycache.protocol.tasks.USUAL_STRENGTH`.

    Files are read and decoded when the request is made, so a ``Path`` is one of the caller's machine, and pixels are
    what crosses handles.

    Raises:
        RequestError: 400: a picture cannot be read.
        OSError: a file cannot be read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: SkipValidation[PictureSource | Sequence[PictureSource]] = Field(
        repr=False, description="One picture or several; of several the first is what is redrawn."
    )
    mask: SkipValidation[PictureSource | None] = Field(
        default=None, repr=False, description="What of the first picture is drawn anew."
    )
    strength: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False, description="How much of the first picture is given up."
    )

    @field_validator("image", mode="before")
    @classmethod
    def _pictures(cls, value: Any) -> tuple[np.ndarray, ...]:
        sources = list(value) if isinstance(value, list | tuple) else [value]
        if not sources:
            raise invalid("image", "an edit needs a picture at least")
        if len(sources) == 1:
            return (as_picture(sources[0]),)
        return tuple(as_picture(source, f"image[{index}]") for index, source in enumerate(sources))

    @field_validator("mask", mode="before")
    @classmethod
    def _mask(cls, value: Any) -> np.ndarray | None:
        return None if value is None else as_mask(value)

    def inputs(self) -> JobInputs:
        """The pictures, and the task that they are for."""
        return JobInputs(
            task=task_of(mask=self.mask is not None, strength=self.strength),
            pictures=cast(tuple[np.ndarray, ...], self.image),
            mask=cast(np.ndarray | None, self.mask),
            strength=self.strength,
        )
