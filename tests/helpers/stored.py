"""A store on engines that answer when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from raycache.ingress.asker import key_in_use
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, GenerationResult, ProgressEvent, ResolvedRequest, StageTimes
from raycache.protocol.videos import VideoRequest
from raycache.settings import AppSettings
from raycache.store.job_store import JobStore
from raycache.store_settings import StoreSettings

__all__ = ["EDITS", "SETTINGS", "VIDEOS", "Clock", "FakeAsker", "settings_of", "stopped", "until", "video_request"]

SETTINGS = AppSettings.model_validate(
    {
        "model": {"path": "noise", "name": "wan"},
        "parallel": {"ranks_per_replica": 2},
        "defaults": {"size": "64x48", "num_inference_steps": 4},
        "limits": {"max_frames": 81, "max_body_bytes": 20_000},
    }
)
#: Of a model that generates images and videos, which no real one does; so one service is enough.
VIDEOS = Capabilities(
    "noise",
    57,
    4,
    64,
    "Any",
    16,
    tasks=("text-to-image", "text-to-video", "image-to-video"),
    frame_step=4,
    fps=16.0,
    max_inputs=1,
)
EDITS = Capabilities("noise", 57, 4, 64, "Any", 16, tasks=("inpaint",), max_inputs=2)


class Clock:
    """Unix time that a test sets."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1e-6  # so that no two jobs have the same time
        return self.now


class FakeAsker:
    """Engines behind an ingress. ``answers`` are given one after the other; without any, the requested result.

    A job starts immediately and ends when ``go`` is set, which it is unless a test clears it. While ``awake`` is not
    set, there is no engine and there has never been one.
    """

    model = VIDEOS

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.go, self.awake = asyncio.Event(), asyncio.Event()
        self.go.set()
        self.awake.set()
        self.asked: list[GenerationRequest] = []
        self.keys: list[str | None] = []
        self.under_way = self.dropped = self.most = 0

    def own_name(self, model: str | None) -> str:
        return "wan"

    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None:
        return await self.order(request) if self.awake.is_set() else None

    async def order(self, request: GenerationRequest) -> ResolvedRequest:
        await self.awake.wait()
        policy = SETTINGS.policy.allowing(self.longest_timeout_s(None))
        return resolve(request, policy, self.model, model_name="wan", ranks=2, key=key_in_use.get())

    async def run(self) -> None:
        """Watches nothing."""

    def longest_timeout_s(self, model: str | None) -> float:
        return 3600.0

    async def stream(self, request: GenerationRequest) -> AsyncIterator[object]:
        order = await self.order(request)
        self.asked.append(request)
        self.keys.append(key_in_use.get())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        ended = False
        try:
            answer = self.answers.pop(0) if self.answers else None
            if isinstance(answer, RequestError) and answer.code == "queue_full":
                ended = True
                raise answer
            for step in (1, 2):
                yield ProgressEvent(step, 4, [], [], 1.0)
            await self.go.wait()
            ended = True
            if answer:
                raise answer
            yield generated(order)
        finally:
            self.under_way -= 1
            self.dropped += not ended


def generated(order: ResolvedRequest) -> GenerationResult:
    """Pixels that depend only on the seed, the size and the index."""
    size = order.size
    shape = (order.inputs.num_frames, size.height, size.width, 3) if order.fps else (size.height, size.width, 3)
    return GenerationResult(
        images=[np.random.default_rng(order.seed + i).integers(0, 255, shape, np.uint8) for i in range(order.n)],
        seeds=[order.seed + index for index in range(order.n)],
        times=StageTimes(denoise=2.0),
        warnings=["odd"],
    )


def settings_of(folder: Path, **fields: Any) -> StoreSettings:
    return StoreSettings(folder=folder, **fields)


def video_request(**fields: Any) -> VideoRequest:
    return VideoRequest(**{"prompt": "a secret circle", "size": "64x48", "num_frames": 5, **fields})


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until ``what()`` is true, and return its value."""
    async with asyncio.timeout(seconds):
        while not (found := what()):
            await asyncio.sleep(0.005)
        return found


async def stopped(store: JobStore) -> None:
    """Stop it as the death of its process would: nothing more is written, and the folder is free."""
    store.close()
    await asyncio.gather(store._working, return_exceptions=True)


def handle_of(store: Any) -> Any:
    """A handle like Serve's for a store in this process."""

    def method(name: str) -> SimpleNamespace:
        def remote(*args: Any) -> Awaitable[Any]:
            return getattr(store, name)(*args)

        return SimpleNamespace(remote=remote)

    return SimpleNamespace(**{name: method(name) for name in ("submit", "find", "page", "delete", "read")})
