"""What rank 0 does alone must not part it from the others."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_core import NoCacheOptions
from raycache import rank as module
from raycache.job import Job
from raycache.rank import Rank

JOB = Job("1", "", 64, 64, (7,), 4, 3.5, NoCacheOptions(), preview_steps=(1,))


@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, fails: bool):
    picture = np.zeros((1, 32, 32, 3), np.uint8)

    def preview(*_: object) -> np.ndarray:
        if fails:
            raise torch.OutOfMemoryError("on purpose")
        return picture

    monkeypatch.setattr(module, "preview", preview)
    rank = object.__new__(Rank)
    rank._rank, rank._pipe, rank._latents, rank._events, rank._lock = 0, None, None, [], threading.Lock()
    for step in range(3):
        rank._step_done(JOB, SimpleNamespace(steps=[]), step, {"latents": torch.zeros(1)})
    told = rank._drain()
    assert [progress.step for progress in told] == [1, 2, 3]
    assert [progress.preview is picture for progress in told] == [False, not fails, False]
