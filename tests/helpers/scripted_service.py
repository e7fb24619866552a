"""A service behind real HTTP whose jobs progress step by step as scripted by their prompts: for tests of the page."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from cache_core.report import CacheReport, ImageDecision, StepRecord
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.schemas import GenerationResult, PreviewEvent, ProgressEvent, QueuedEvent, StageTimes
from raycache.settings import AppSettings
from tests.helpers.fake_service import READY, FakeService

STEPS, BLOCKS, THRESHOLD = 8, 12, 0.12
MODEL = Capabilities("folder", BLOCKS, 4, 64, "FluxPipeline", 16)
SETTINGS = {
    "model": {"path": "noise"},
    "defaults": {"size": "64x64", "num_inference_steps": STEPS},
}


class ScriptedService(FakeService):
    """Answers immediately, except for these prompts: ``wait`` (two jobs are ahead until :attr:`go`), ``wrong``
    (refused), ``full`` (refused for now), ``broken`` (ends in the middle).
    """

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = AppSettings.model_validate({**SETTINGS, **settings})
        presets = {name: {"type": "DBCache", "residual_diff_threshold": THRESHOLD} for name in ("high", "fast")}
        self.policy = self.settings.policy.changed({"presets": presets})
        self.max_body_bytes = 1 << 20
        self.capabilities = MODEL
        self.go = False
        gang = {"progress": [{"size": "512x512", "images": 2, "step": 3, "steps": 10}]}
        self.engines = [replace(READY, gang=gang, queued=2)]

    async def models(self):
        return [replace(card, policy=self.policy) for card in await super().models()]

    async def generate_stream(self, request):
        self.requests.append(request)
        try:
            if request.prompt == "wrong":
                raise invalid("size", "65x64 is no multiple of 16", ["64x64"])
            if request.prompt == "full":
                raise RequestError(429, "too many jobs wait", None, "queue_full", 7)
            if request.prompt == "wait":
                yield QueuedEvent(2, 41.0)
                while not self.go:
                    await asyncio.sleep(0.01)
            async for event in self._drawn(request):
                yield event
        finally:
            self.closed = True

    async def _drawn(self, request):
        exact = request.quality == "exact"
        for step in range(STEPS):
            cached, difference = ([], []) if exact else ([step > 1 and step % 2 == 0], [differs(step)])
            yield ProgressEvent(step + 1, STEPS, cached, difference, 0.5)
            if request.partial_images and step in (2, 4, 6):
                yield PreviewEvent(step // 2 - 1, [drawing(16)])
            if request.prompt == "broken" and step == 3:
                raise RequestError(500, "a rank died twice under it", None, "job_failed")
        kind = request.cache.type if request.cache else "DBCache"
        yield GenerationResult(
            images=[drawing(64) if exact else 255 - drawing(64) // 2],
            seeds=[1234 if request.seed is None else request.seed],
            report=None if exact else report(kind).to_dict(),
            times=StageTimes(queue=0.2, encode=0.1, denoise=4.0 if exact else 1.5, decode=0.1),
            warnings=["the model does not know the word `zebra`"] if "zebra" in request.prompt else [],
        )


def differs(step: int) -> float | None:
    return None if step < 2 else 0.05 if step % 2 == 0 else 0.2


def drawing(side: int) -> np.ndarray:
    """A gradient."""
    column, row = np.meshgrid(*[np.linspace(0, 255, side)] * 2)
    return np.stack([column, row, 255 - column], axis=-1).astype(np.uint8)


def report(method: str) -> CacheReport:
    """Every other step reuses, after two warm-up steps; DBPrune skips blocks 3, 4, 5 and 7 in those."""
    record = CacheReport(method, {"type": method, "residual_diff_threshold": THRESHOLD}, BLOCKS)
    for step in range(STEPS):
        below = step > 1 and step % 2 == 0
        reason = "warmup" if step < 2 else "below" if below else "threshold"
        image = ImageDecision(below, reason, differs(step), computed_blocks=4 if below else BLOCKS)
        if method == "DBPrune":
            image = ImageDecision(False, reason, None, [3, 4, 5, 7] if below else [], 8 if below else BLOCKS)
        record.steps.append(StepRecord(step, "main", [image]))
    return record


@contextmanager
def served(app: FastAPI, prefix: str = "") -> Iterator[str]:
    """The URL of an application behind a real server in a thread, under a prefix as with Serve's proxy."""

    async def under_prefix(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": prefix}, receive, send)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(under_prefix, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{prefix}"
        finally:
            server.force_exit = server.should_exit = True
            thread.join(10)
