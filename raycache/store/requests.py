"""Requests as they are stored: JSON, and one file for each input image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from raycache.protocol.edits import EditRequest
from raycache.protocol.formats import encode
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.protocol.stored import AskedAs, StoredJob
from raycache.protocol.videos import VideoRequest

__all__ = ["asked_as", "chosen", "image_files", "kept_request", "request_of"]

#: The type that a stored request is read as.
_TYPES: dict[AskedAs, type[GenerationRequest]] = {
    "generation": GenerationRequest,
    "edit": EditRequest,
    "video": VideoRequest,
}
#: Fields that contain images.
_IMAGES = frozenset({"image", "mask", "input_reference"})


def asked_as(request: GenerationRequest) -> AskedAs:
    """The stored name of the type of ``request``."""
    return next(word for word, kind in _TYPES.items() if type(request) is kind)


def kept_request(request: GenerationRequest) -> dict[str, Any]:
    """``request`` as JSON, without its images."""
    return request.model_dump(mode="json", exclude_none=True, exclude=set(_IMAGES))


def chosen(order: ResolvedRequest) -> dict[str, Any]:
    """Fields that were chosen for a request: with them it gives the same result every time it is run."""
    fields: dict[str, Any] = {
        "seed": order.seed,
        "size": str(order.size),
        "num_inference_steps": order.num_inference_steps,
        "guidance_scale": order.guidance_scale,
        "model": order.model,
    }
    if order.fps:
        fields |= {"fps": order.fps, "num_frames": order.inputs.num_frames, "seconds": None}
    return fields


def image_files(request: GenerationRequest) -> dict[str, bytes]:
    """The images of ``request`` as PNG (lossless), by the names that :func:`request_of` uses. Blocks."""
    return {f"input-{name}.png": encode(pixels, "png") for name, pixels in _images(request).items()}


def request_of(job: StoredJob, path_of: Callable[[str], Path], timeout_s: float) -> GenerationRequest:
    """The request that an engine gets for ``job``. Blocks while it reads the images.

    Args:
        job: as stored.
        path_of: returns the path of a file of the job.
        timeout_s: seconds left for the job.

    Raises:
        OSError: an image is missing.
    """
    paths = {name: path_of(f"input-{name}.png") for name in job.images}
    given: dict[str, Any] = {name: path for name, path in paths.items() if not name.startswith("image-")}
    if job.asked_as == "edit":
        given["image"] = [paths[f"image-{index}"] for index in range(len(paths) - len(given))]
    request = _TYPES[job.asked_as].model_validate({**job.request, **given})
    return request.model_copy(update={"timeout_s": timeout_s, "partial_images": 0})


def _images(request: GenerationRequest) -> dict[str, np.ndarray]:
    if isinstance(request, VideoRequest):
        named = {"input_reference": request.input_reference}
    elif isinstance(request, EditRequest):
        images = cast(tuple[np.ndarray, ...], request.image)
        named = {"mask": request.mask, **{f"image-{index}": image for index, image in enumerate(images)}}
    else:
        named = {}
    return {name: cast(np.ndarray, pixels) for name, pixels in named.items() if pixels is not None}
