"""A gang that works on many jobs at once: each gets the image that it would get alone, whoever shares its calls."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cache_core import DBCacheOptions, NoCacheOptions
from raycache.gang.gang import Gang
from raycache.protocol.job import JobOutput
from raycache.protocol.job_errors import DeadlineExceeded, JobCancelled, JobFailed
from raycache.settings import AppSettings
from raycache.testing.planned_faults import PlannedFault
from tests.serving.conftest import CACHE, LONG, job, started_gang, wait_until


@pytest.fixture(scope="module")
def gang(local_ray: None, gang_settings: Callable[..., AppSettings]) -> Iterator[Gang]:
    """Its warm-up has taught it that a row more costs less than a call. It decodes as ranks on GPUs do."""
    settings = gang_settings(
        parallel={"overlap_decoding": True},
        warmup=[{"size": "64x64"}, {"size": "64x64", "n": 4}],
        cache=CACHE.model_dump(),
        reliability={"watchdog_floor_s": 3.0, "max_restarts": 99},
    )
    with started_gang(settings, "many") as gang:
        yield gang


def alike(images: np.ndarray, reference: np.ndarray) -> bool:
    return bool(np.abs(images.astype(int) - reference).max() <= 1)


def same(output: JobOutput, alone: JobOutput) -> None:
    """Up to rounding; decisions exactly."""
    assert alike(output.images, alone.images)
    for name in ("steps", "cached_steps", "computed_block_fraction"):
        assert output.report["totals"][name] == alone.report["totals"][name]
    assert output.report["options"] == alone.report["options"]


def test_jobs_of_all_kinds_at_once_are_what_each_is_alone(gang: Gang):
    few = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2}
    jobs = [
        job(steps=steps, seeds=seeds, cache=DBCacheOptions(**few, residual_diff_threshold=threshold), **changes)
        for steps, seeds, threshold, changes in (
            (12, (1,), 0.3, {}),
            (9, (2, 3), 0.0, {"prompt": "a blue square left of a green star"}),
            (20, (1,), 5.0, {"guidance_scale": 20.0}),
            (6, (4,), 0.3, {"size": "128x64"}),
            (15, (5,), 0.3, {"preview_steps": (4,)}),
        )
    ]
    alone = [gang.submit(one).future.result(60) for one in jobs]
    handles = [gang.submit(one) for one in jobs]
    drawn = [handle.future.result(120) for handle in handles]
    for output, expected in zip(drawn, alone, strict=True):
        same(output, expected)
    assert [output.shared for output in alone] == [0] * 5
    assert sum(output.shared > 0 for output in drawn) >= 3, "calls were joined"
    assert drawn[0].report["totals"]["cached_steps"][0] > drawn[1].report["totals"]["cached_steps"][0] == 0


def test_a_short_job_does_not_wait_for_a_long_one(gang: Gang):
    long = gang.submit(job(steps=LONG, size="256x256", cache=NoCacheOptions()))
    wait_until(lambda: gang.status().ranks[0].get("step", 0) > 1)
    gang.submit(job(steps=4)).future.result(60)
    assert not long.future.done()
    long.abort("enough")
    with pytest.raises(JobCancelled):
        long.future.result(60)


def test_who_leaves_takes_nobody_along(gang: Gang):
    reference = gang.submit(job(seeds=(9,), steps=40)).future.result(60)
    leaves, late, stays = (
        gang.submit(job(seeds=(seed,), steps=steps), deadline=deadline)
        for seed, steps, deadline in ((8, LONG, None), (7, LONG, time.monotonic() + 3), (9, 40, None))
    )
    wait_until(lambda: len(gang.status().jobs) == 3)
    leaves.abort("the client left")
    with pytest.raises(JobCancelled):
        leaves.future.result(60)
    same(stays.future.result(60), reference)
    with pytest.raises(DeadlineExceeded):
        late.future.result(60)


@pytest.mark.parametrize("at", ["encode", "denoise", "decode"])
def test_an_error_of_one_ends_that_one(gang: Gang, at: str):
    """On all ranks alike; in decoding, whichever has a row."""
    before = gang.status().restarts
    reference = gang.submit(job(seeds=(5,), steps=9)).future.result(60)
    plans = "".join(
        PlannedFault(kind="raise", rank=rank, at=at, step=2).prompt("" if rank else "a red circle") for rank in (0, 1)
    )
    bad, good = gang.submit(job(seeds=(1,), prompt=plans)), gang.submit(job(seeds=(5,), steps=9))
    with pytest.raises(JobFailed, match="on purpose"):
        bad.future.result(60)
    same(good.future.result(60), reference)
    assert gang.status().restarts == before


def test_five_active_jobs_outlive_a_rank(gang: Gang):
    before = gang.status()
    jobs = [job(steps=60 + 10 * k, seeds=(k,)) for k in range(5)]
    alone = [gang.submit(one).future.result(60) for one in jobs]
    handles = [gang.submit(one) for one in jobs]
    wait_until(lambda: len(gang.status().jobs) == 5 and gang.status().ranks[0].get("step", 0) > 3)
    os.kill(gang.status().ranks[1]["pid"], signal.SIGKILL)
    for handle, expected in zip(handles, alone, strict=True):
        output = handle.future.result(150)
        np.testing.assert_array_equal(output.images, expected.images)  # drawn again, each by itself
    assert gang.status().restarts == before.restarts + 1
    assert gang.status().retries == before.retries + 5


def test_one_that_breaks_ranks_is_found(gang: Gang):
    """It costs three sets of ranks; the others are answered."""
    before = gang.status().restarts
    bad = gang.submit(job(prompt=PlannedFault(kind="kill", rank=1, step=2).prompt()))
    others = [gang.submit(job(seeds=(k,), steps=30)) for k in range(2)]
    with pytest.raises(JobFailed, match="tried 3 times"):
        bad.future.result(200)
    assert all(other.future.result(100).images.shape == (1, 64, 64, 3) for other in others)
    assert gang.status().restarts == before + 3
