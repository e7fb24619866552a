"""Edit requests over HTTP, and the errors for invalid ones."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from raycache.protocol.capabilities import Task
from raycache.protocol.schemas import ResolvedRequest
from tests.helpers.image_files import file, scene
from tests.helpers.openai_surface import Service

__all__ = ["IMAGE", "MASK", "OTHER", "REDRAWN", "TASKS", "URL", "data_url", "last", "refused"]

URL = "/v1/images/edits"
TASKS: tuple[Task, ...] = ("text-to-image", "edit", "inpaint", "image-to-image")
IMAGE, OTHER = file(scene()), file(scene(40, 24), "JPEG")
REDRAWN = np.zeros((16, 24), np.uint8)
REDRAWN[4:8, 4:12] = 255
MASK = file(np.dstack([scene(), 255 - REDRAWN]))


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def last(service: Service) -> ResolvedRequest:
    return service.orders[-1]


def refused(answer: Any, param: str | None, status: int = 400) -> str:
    """The message of a refusal that names ``param``."""
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()["error"]
    assert error["param"] == param
    assert len(error["message"]) < 500
    return str(error["message"])
