"""Requests and replies, the same for HTTP and Python handles: OpenAI's images API plus our own fields."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from cache_core.options import CacheOptions


class GenerationRequest(BaseModel):
    """One request for ``n`` pictures. Fields that are None take the deployment's defaults.

    Only what can be judged without knowing the deployment is judged here; the rest (limits, divisibility, options
    against the model's blocks) is checked by :mod:`raycache.validation` before a GPU is touched.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = Field(default=1, ge=1)
    size: str | None = Field(default=None, description="`WIDTHxHEIGHT` in pixels, or `auto`.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Image k of a request is drawn from seed + k.")
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    cache: CacheOptions | None = Field(default=None, description="null = the deployment's default.")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int = Field(default=100, ge=0, le=100, description="Quality of jpeg and webp, in percent.")
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="Deadline, seconds from arrival.")
    user: str | None = None


class StageTimes(BaseModel):
    """Seconds a request spent in each stage."""

    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0


class GenerationResult(BaseModel):
    """What a handle call returns.

    Attributes:
        images: uint8 arrays of shape [height, width, 3], RGB.
        seeds: the seed each image was drawn from.
        report: decisions of the cache, ``CacheReport.to_dict()``; None when the request asked for no cache.
        times: seconds per stage.
        warnings: what was odd but not wrong, for the user to read.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    images: list[SkipValidation[np.ndarray]]
    seeds: list[int]
    report: dict[str, Any] | None = None
    times: StageTimes = StageTimes()
    warnings: list[str] = Field(default_factory=list)

    def save(self, path: str) -> None:
        """Write the first image to ``path``; the suffix names the format."""
        from PIL import Image

        Image.fromarray(self.images[0]).save(path)
