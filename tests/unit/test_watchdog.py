"""What the watchdog calls a hang, without a rank."""

from __future__ import annotations

import time

import pytest

from cache_core import DBCacheOptions, NoCacheOptions
from raycache.job import Job
from raycache.settings import ReliabilitySettings
from raycache.watchdog import Patience

SETTINGS = ReliabilitySettings(watchdog_floor_s=5, watchdog_steps=3, watchdog_first_s=100)


def job(steps: int = 28, cache: object = None, **changes: object) -> Job:
    values = {"id": "1", "prompt": "", "width": 64, "height": 64, "seeds": (1,), "guidance_scale": 1.0}
    return Job(num_inference_steps=steps, cache=cache or DBCacheOptions(warmup_steps=8), **{**values, **changes})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_patience_is_long_until_a_job_went_beyond_the_cache_warm_up():
    patience = Patience(SETTINGS)
    assert patience.seconds(job(), "denoise") == 100
    patience.finished(job(steps=4), 4.0)
    assert patience.seconds(job(), "denoise") == 100, "its first comparison may compile"
    assert patience.seconds(job(steps=4), "denoise") == 5, "a short job has no comparison"
    patience.finished(job(steps=10), 10.0)
    assert patience.seconds(job(), "denoise") == 5
    assert patience.seconds(job(width=128), "denoise") == 100
    assert patience.seconds(job(cache=NoCacheOptions()), "denoise") == 100
    assert patience.seconds(job(), "decode") == 100


def test_the_slowest_step_counts(clock: list[float]):
    patience = Patience(SETTINGS)
    patience.begin()
    for step, now in ((1, 50.0), (3, 54.0), (4, 60.0), (28, 62.0)):  # the first has encoding in it
        clock[0] = now
        patience.learn(job(), step)
    patience.finished(job(), 30.0)
    assert patience.seconds(job(), "denoise") == 3 * 6.0


def test_disagreeing_images_compile_at_any_step():
    compiled, eager = Patience(SETTINGS, compiles=True), Patience(SETTINGS)
    for patience in (compiled, eager):
        patience.finished(job(seeds=(1, 2)), 28.0)
        patience.finished(job(), 28.0)
    assert (compiled.seconds(job(seeds=(1, 2)), "denoise"), compiled.seconds(job(), "denoise")) == (100, 5)
    assert eager.seconds(job(seeds=(1, 2)), "denoise") == 5
