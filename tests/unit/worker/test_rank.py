"""What rank 0 does alone must not part it from the others."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_core import NoCacheOptions
from raycache.protocol.job import Job
from raycache.worker.rank import Rank

JOB = Job("1", "", 64, 64, (7,), 4, 3.5, NoCacheOptions(), preview_steps=(1,))


@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_that_fails_is_left_out(fails: bool):
    picture = np.zeros((1, 32, 32, 3), np.uint8)

    def preview(*_: object) -> np.ndarray:
        if fails:
            raise torch.OutOfMemoryError("on purpose")
        return picture

    rank = object.__new__(Rank)
    rank._family = SimpleNamespace(preview=preview)
    rank._rank, rank._pipe, rank._latents, rank._lock = 0, None, None, threading.Lock()
    rank._events, rank._told = [], []
    for step in range(3):
        rank._step_done(JOB, SimpleNamespace(steps=[]), step, {"latents": torch.zeros(1)})
    told = rank._drain()
    assert [progress.step for progress in told] == [1, 2, 3]
    assert [progress.preview is picture for progress in told] == [False, not fails, False]


def test_progress_that_a_late_heartbeat_took_along_is_told_with_the_picture(monkeypatch: pytest.MonkeyPatch):
    rank = object.__new__(Rank)
    rank._settings, rank._rank, rank._pipe, rank._world, rank._latents = None, 0, None, 1, None
    rank._events, rank._told, rank._lock = [], [], threading.Lock()
    rank._device, rank._phase = SimpleNamespace(type="cpu"), "idle"
    rank._family = SimpleNamespace(preview=lambda *_: np.zeros((1, 32, 32, 3), np.uint8))

    def drawn(job: Job, _spans: object) -> str:
        for step in range(3):
            rank._step_done(job, SimpleNamespace(steps=[]), step, {"latents": torch.zeros(1)})
            if step == 1:
                # By a heartbeat whose answer nobody reads.
                assert [progress.step for progress in rank._drain()] == [1, 2]
        return "picture"

    monkeypatch.setattr(rank, "_claim_thread", lambda: None)
    monkeypatch.setattr(rank, "_draw", drawn)
    for _ in range(2):
        picture, told = rank.generate(JOB)
        assert (picture, [progress.step for progress in told]) == ("picture", [1, 2, 3])
