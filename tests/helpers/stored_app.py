"""The HTTP application with a store, and requests to it."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from fastapi.testclient import TestClient

from raycache.protocol.formats import encode
from tests.helpers.fake_service import FakeService
from tests.helpers.stored import FakeAsker

__all__ = ["BLUE", "GREEN", "IMAGE", "LATER", "PIXELS", "PNG", "URL", "VIDEO", "Application", "frames_of"]

BLUE, GREEN = ({"authorization": f"Bearer {name}"} for name in ("blue-key", "green-key"))
VIDEO = {"prompt": "a circle", "size": "64x48", "num_frames": 5, "seed": 7}
IMAGE = {"prompt": "a circle", "size": "64x48", "n": 2, "seed": 3}
LATER = {"prefer": "respond-async"}


class Application:
    """The HTTP application with a store whose engine is ``asker``; requests use the key of blue."""

    def __init__(self, http: TestClient, asker: FakeAsker, service: FakeService) -> None:
        self.http, self.asker, self.service = http, asker, service

    def hold(self) -> None:
        """From now on, jobs do not end."""
        self.http.portal.call(self.asker.go.clear)

    def made(self, **fields: Any) -> dict[str, Any]:
        response = self.http.post("/v1/videos", json={**VIDEO, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def once(self, url: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The answer of ``url`` as soon as ``holds`` is true of it."""
        for _ in range(2000):
            if holds(told := self.http.get(url).json()):
                return told
            self.http.portal.call(asyncio.sleep, 0.005)
        raise AssertionError(f"{url} never reached the expected state")

    def done(self, **fields: Any) -> dict[str, Any]:
        return self.once(f"/v1/videos/{self.made(**fields)['id']}", lambda told: told["status"] == "completed")


def frames_of(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


PIXELS = np.random.default_rng(5).integers(0, 255, (48, 64, 3), np.uint8)
PNG = encode(PIXELS, "png")
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
