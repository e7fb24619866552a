"""How long a rank may show no progress, without a rank."""

from __future__ import annotations

import numpy as np
import pytest

from cache_core import DBCacheOptions, NoCacheOptions
from raycache.engine_settings import ReliabilitySettings
from raycache.gang.costs import Costs, work_of
from raycache.gang.step_timeouts import StepTimeouts
from raycache.protocol.job import Job, JobOutput
from tests.helpers.jobs import make_job

SETTINGS = ReliabilitySettings(watchdog_floor_s=5, watchdog_steps=3, watchdog_first_s=100)


def job(steps: int = 28, cache: object = None, **changes: object) -> Job:
    return make_job(steps=steps, cache=cache or DBCacheOptions(warmup_steps=8), **changes)


def taught(*, cold: bool = False, encode_s: float = 0.2, step_s: float = 0.1, decode_s: float = 0.4) -> Costs:
    """What a gang knows after one job of 1024x1024."""
    costs, drawn = Costs(), job(cache=NoCacheOptions(), size="1024x1024")
    phases = {"encode_s": encode_s, "denoise_s": 28 * step_s, "decode_s": decode_s}
    costs.learn(work_of(drawn), JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, **phases), cold=cold)
    return costs


@pytest.mark.parametrize("cold", [True, False], ids=["after the warm-up", "after a job"])
@pytest.mark.parametrize("phase", ["idle", "encode", "denoise", "decode"])
def test_a_size_never_drawn_gets_no_more_than_its_work_needs(phase: str, cold: bool):
    """It was 120 s, whatever the size and whatever else had been drawn."""
    timeouts = StepTimeouts(SETTINGS, taught(cold=cold))
    for drawn in (job(), job(size="512x512"), job(size="1024x512", cache=NoCacheOptions())):
        assert timeouts.seconds([drawn], phase) == 5
    slow = StepTimeouts(SETTINGS, taught(cold=cold, encode_s=4.0, step_s=4.0, decode_s=4.0))
    assert 5 <= slow.seconds([job(size="512x512")], phase) <= 12.1
    assert slow.seconds([job(size="1024x1024")], phase) == pytest.approx(12, rel=0.01)


def test_larger_work_gets_more_in_the_phase_in_which_it_is_larger():
    timeouts = StepTimeouts(SETTINGS, taught(encode_s=4.0, step_s=4.0, decode_s=4.0))
    large = job(size="2048x2048")
    assert timeouts.seconds([large], "encode") == pytest.approx(12, rel=0.01)
    for phase in ("denoise", "decode"):
        # Four times the tokens take 4 to 16 times as long, three times that is allowed.
        assert 3 * 4 * 4.0 < timeouts.seconds([large], phase) < 3 * 16 * 4.0
        four = job(size="1024x1024", seeds=(1, 2, 3, 4))
        assert 3 * 3 * 4.0 < timeouts.seconds([four], phase) <= 3 * 8 * 4.0


def test_a_step_with_a_preview_decodes_too():
    timeouts = StepTimeouts(SETTINGS, taught(step_s=2.0, decode_s=40.0))
    plain, shown = (job(size="1024x1024", preview_steps=steps) for steps in ((), (6,)))
    assert timeouts.seconds([plain], "denoise") == pytest.approx(6, rel=0.01)
    assert timeouts.seconds([shown], "denoise") > 6 + 3 * 5


def test_new_ranks_may_draw_their_warm_up_five_times_as_slowly_as_those_before_them():
    assert StepTimeouts(SETTINGS).seconds([job()], "decode", cold=True) == 100
    timeouts = StepTimeouts(SETTINGS, taught(cold=True, encode_s=0.1, decode_s=4.0))
    assert [timeouts.seconds([job()], phase, cold=True) for phase in ("encode", "decode")] == [5, 20]


@pytest.mark.parametrize("cold", [True, False])
def test_a_rank_that_compiles_gets_long_whatever_it_draws(cold: bool):
    timeouts = StepTimeouts(SETTINGS, taught(cold=cold))
    assert timeouts.seconds([job()], "denoise", cold=cold) < 20
    assert timeouts.seconds([job()], "compile", cold=cold) == 100


def test_the_slowest_call_counts():
    timeouts = StepTimeouts(SETTINGS)
    for seconds in (2.0, 6.0, 1.0):
        timeouts.called([job()], seconds)
    timeouts.finished(job(), 30.0)
    assert timeouts.seconds([job()], "denoise") == 3 * 6.0


def test_a_shared_call_may_take_as_long_as_its_jobs_would_apart():
    timeouts = StepTimeouts(SETTINGS, taught(step_s=4.0))
    jobs = [job(id=name, size="1024x1024") for name in "abc"]
    assert timeouts.seconds(jobs[:1], "denoise") == pytest.approx(12, rel=0.01)
    assert timeouts.seconds(jobs, "denoise") == pytest.approx(36, rel=0.01)
    timeouts.called(jobs, 15.0)
    assert timeouts.seconds(jobs, "denoise") == 45.0
    assert timeouts.seconds(jobs[:1], "denoise") == pytest.approx(12, rel=0.01), "nothing is said of one alone"
    assert timeouts.seconds([], "denoise") == 5, "a rank that has not begun yet"
