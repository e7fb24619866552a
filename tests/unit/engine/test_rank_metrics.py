"""What ranks report of themselves, as the engine's gauges."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from raycache.metrics import Metrics
from raycache.protocol.heartbeat import Heartbeat
from raycache.protocol.job import GangStatus


def rank(number: int, **changes: Any) -> dict[str, Any]:
    """A rank's part of the status, as the gang makes it."""
    heartbeat = Heartbeat(
        pid=100 + number,
        node="n",
        device="cuda:0",
        gpus=["0"],
        jobs=(),
        phase="idle",
        step=0,
        calls=0,
        memory=7,
        device_memory=9,
        collective_wait_s=0.0,
        **changes,
    )
    return {"rank": number, **asdict(heartbeat), "age_s": 0.1}


def test_a_rank_that_could_not_compile_is_seen_and_one_that_compiles_again_is_not(monkeypatch: pytest.MonkeyPatch):
    metrics, seen = Metrics(), {}
    monkeypatch.setattr(metrics.rank_uncompiled, "set", lambda value, tags: seen.update({tags["rank"]: value}))
    failed = rank(1, compile_failure="rank 1: no compiler")
    metrics.gang(GangStatus("g", True, 0, 0, [], ranks=[rank(0), failed, {"rank": 2, "age_s": 3.0}]))
    assert seen == {"0": 0.0, "1": 1.0}, "and of one that has not reported yet, nothing"
    metrics.gang(GangStatus("g", True, 1, 0, [], ranks=[rank(0), rank(1)]))
    assert seen == {"0": 0.0, "1": 0.0}
