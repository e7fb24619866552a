"""A gang that draws waiting jobs together: each gets the picture that it would get alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cache_core import DBCacheOptions
from raycache.gang.gang import Gang
from raycache.gang.queue import JobHandle
from raycache.protocol.job import JobCancelled, JobFailed
from raycache.testing.faulty_rank import PlannedFault
from tests.serving.conftest import FAULTY, started_gang, wait_until
from tests.serving.test_gang_draws import job


@pytest.fixture(scope="module")
def gang(local_ray, gang_settings) -> Iterator[Gang]:
    with started_gang(gang_settings(parallel={"max_batch_size": 4, "rank_class": FAULTY}), "batches") as gang:
        yield gang


def together(gang: Gang, *jobs) -> list[JobHandle]:
    """The jobs' handles; all of them waited while something else was drawn."""
    before = gang.submit(job(steps=5000))
    wait_until(lambda: gang.status().job is not None)
    handles = [gang.submit(one) for one in jobs]
    before.abort("enough")
    with pytest.raises(JobCancelled):
        before.future.result(60)
    return handles


def alike(images: np.ndarray, reference: np.ndarray) -> bool:
    return bool(np.abs(images.astype(int) - reference).max() <= 1)


def test_pictures_equal_those_drawn_alone(gang: Gang):
    jobs = [
        job(seeds=(1,), prompt="a red circle"),
        job(seeds=(2, 3), prompt="a blue square left of a green star"),
        job(seeds=(4,), prompt="a red circle"),
    ]
    alone = [gang.submit(one).future.result(60) for one in jobs]
    drawn = [handle.future.result(60) for handle in together(gang, *jobs)]
    assert [output.batch_size for output in alone] == [0, 0, 0]
    assert [output.batch_size for output in drawn] == [4, 4, 4]
    for single, shared in zip(alone, drawn, strict=True):
        assert alike(shared.images, single.images)
        for name in ("cached_steps", "computed_block_fraction"):
            assert shared.report["totals"][name] == single.report["totals"][name]
    assert not alike(drawn[0].images, drawn[2].images)


def test_each_has_its_own_thresholds_and_guidance(gang: Gang):
    """One seed and prompt four times: what differs between the pictures is what was asked for, not the company."""
    few = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2}
    jobs = [
        job(steps=12, cache=DBCacheOptions(**few, residual_diff_threshold=threshold), guidance_scale=guidance)
        for threshold, guidance in ((0.0, 3.5), (0.3, 3.5), (5.0, 3.5), (0.3, 20.0))
    ]
    alone = [gang.submit(one).future.result(60) for one in jobs]
    drawn = [handle.future.result(60) for handle in together(gang, *jobs)]
    assert [output.batch_size for output in drawn] == [4, 4, 4, 4]
    for one, single, shared in zip(jobs, alone, drawn, strict=True):
        assert alike(shared.images, single.images)
        assert shared.report["totals"]["cached_steps"] == single.report["totals"]["cached_steps"]
        assert shared.report["options"] == single.report["options"] == one.cache.to_dict()
    never, sometimes, always = (output.report["totals"]["cached_steps"][0] for output in drawn[:3])
    assert never == 0 < sometimes < always
    assert not alike(drawn[1].images, drawn[3].images)


def test_a_fifth_picture_and_a_stranger_wait_for_their_turn(gang: Gang):
    handles = together(gang, job(seeds=(1, 2, 3)), job(seeds=(4, 5)), job(seeds=(6,)), job(width=128, seeds=(7,)))
    assert [handle.future.result(60).batch_size for handle in handles] == [4, 0, 4, 0]


def test_one_that_leaves_takes_nobody_along(gang: Gang):
    reference = gang.submit(job(seeds=(9,), steps=40)).future.result(60).images
    leaves, stays = together(gang, job(seeds=(8,), steps=40), job(seeds=(9,), steps=40))
    wait_until(lambda: gang.status().job is not None and "+" in gang.status().job)
    leaves.abort("the client left")
    with pytest.raises(JobCancelled):
        leaves.future.result(60)
    output = stays.future.result(60)
    assert output.batch_size == 2
    assert alike(output.images, reference)


def test_what_fails_together_is_drawn_alone(gang: Gang):
    broken = job(seeds=(1,), prompt=PlannedFault(kind="raise", at="decode").prompt())
    reference = gang.submit(job(seeds=(5,))).future.result(60).images
    bad, good = together(gang, broken, job(seeds=(5,)))
    with pytest.raises(JobFailed, match="on purpose"):
        bad.future.result(60)
    np.testing.assert_array_equal(good.future.result(60).images, reference)
    assert gang.status().restarts == 0
