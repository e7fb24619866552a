"""Requests with OpenAI's client, for each task of the small models, with the scene of plain_diffusers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import numpy as np
import openai
from PIL import Image

from raycache.testing.tiny_models import TINY_FAMILIES
from tests.helpers.plain_diffusers import PROMPT, SEED, STRENGTH, masked, scene

__all__ = ["FPS", "NONE", "Answer", "asked", "edited", "frames", "mask", "pixels", "png"]

NONE = {"type": "none"}
_GUIDED = ("negative_prompt", "true_cfg_scale")
FPS = 8


class Answer(NamedTuple):
    """An answer: pixels as in :class:`tests.helpers.plain_diffusers.Plain`, and the report."""

    pixels: np.ndarray
    report: dict[str, Any] | None


def asked(client: openai.OpenAI, name: str, task: str, cache: dict[str, Any]) -> Answer:
    """Request a task from a model as a client does."""
    extra = _extra(name, cache)
    if task.endswith("video"):
        return video(client, name, task, extra)
    ask: dict[str, Any] = {"model": name, "prompt": PROMPT, "extra_body": extra}
    if task == "text-to-image":
        told = client.images.generate(**ask)
    else:
        extra |= {"strength": STRENGTH} if task == "image-to-image" else {}
        ask |= {"mask": mask()} if task == "inpaint" else {}
        told = client.images.edit(image=png(scene()), **ask)
    return Answer(pixels(told.data[0].b64_json), told.model_dump()["report"])


def video(client: openai.OpenAI, name: str, task: str, extra: dict[str, Any]) -> Answer:
    """As :func:`asked`, for a stored job."""
    more: dict[str, Any] = {"input_reference": png(scene())} if task == "image-to-video" else {}
    size: Any = "64x64"
    extra |= {"num_frames": TINY_FAMILIES[name].ask["num_frames"], "fps": FPS}
    told = client.videos.create_and_poll(
        model=name, prompt=PROMPT, size=size, extra_body=extra, poll_interval_ms=200, **more
    )
    assert told.status == "completed", told
    content = client.videos.download_content(told.id).read()
    assert client.videos.delete(told.id).deleted
    return Answer(frames(io.BytesIO(content)), told.model_dump()["report"])


def frames(file: Any) -> np.ndarray:
    with av.open(file) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


def png(image: np.ndarray) -> tuple[str, bytes, str]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "image.png", buffer.getvalue(), "image/png"


def mask() -> tuple[str, bytes, str]:
    """A mask in OpenAI's form: transparent where the image is to be replaced."""
    return png(np.dstack([scene(), 255 - masked()]))


def pixels(encoded: str | None) -> np.ndarray:
    assert encoded
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def edited(client: openai.OpenAI, name: str, widths: Sequence[int]) -> np.ndarray:
    """Edit several images of these widths into one, without a cache."""
    images = [png(scene(width)) for width in widths]
    told = client.images.edit(model=name, image=images, prompt=PROMPT, extra_body=_extra(name, NONE))
    return pixels(told.data[0].b64_json)


def _extra(name: str, cache: dict[str, Any]) -> dict[str, Any]:
    known = TINY_FAMILIES[name].ask
    return {"seed": SEED, "cache": cache} | {field: known[field] for field in _GUIDED if field in known}
