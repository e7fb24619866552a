"""A gang of 2 gloo ranks on a real local Ray: images, progress, errors, aborts."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from cache_core import DBPruneOptions, NoCacheOptions
from raycache.gang.gang import Gang
from raycache.protocol.job import Progress
from raycache.protocol.job_errors import DeadlineExceeded, JobCancelled, JobFailed
from tests.serving.conftest import LONG, job, wait_until


def test_an_image_with_its_report(gang: Gang, reference: np.ndarray):
    assert reference.shape == (1, 64, 64, 3)
    assert reference.dtype == np.uint8
    assert reference.std() > 10
    output = gang.submit(job()).future.result(60)
    np.testing.assert_array_equal(output.images, reference)
    totals = output.report["totals"]
    assert totals["steps"] == 6
    assert totals["cached_steps"][0] > 0
    assert totals["collectives"] == 6, "the two ranks must have decided together"
    assert output.encode_s > 0
    assert output.denoise_s > 0
    assert output.decode_s > 0
    model = gang.capabilities()
    assert (model.num_blocks, model.num_heads, model.text_tokens, model.kind) == (6, 4, 64, "noise")


def test_each_image_has_its_own_seed(gang: Gang, reference: np.ndarray):
    both = gang.submit(job(seeds=(3, 7))).future.result(60).images
    assert np.abs(both[1].astype(int) - reference[0]).max() <= 1, "image k equals its seed drawn alone, up to rounding"
    assert np.abs(both[0].astype(int) - reference[0]).mean() > 2


@pytest.mark.parametrize("options", [NoCacheOptions(), DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1)])
def test_progress_is_told_once_per_step_and_in_order(gang: Gang, options):
    told: list[Progress] = []
    wanted = job(steps=8, seeds=(1, 2), size="128x64", preview_steps=(0, 4), cache=options)
    output = gang.submit(wanted, on_progress=told.append).future.result(60)
    assert [(p.step, p.steps) for p in told] == [(k, 8) for k in range(1, 9)]
    assert [p.step for p in told if p.preview is not None] == [1, 5]
    preview = told[4].preview
    assert preview.dtype == np.uint8
    assert preview.shape[0] == 2
    assert preview.shape[1] * 2 == preview.shape[2]
    small = output.images.reshape(2, preview.shape[1], 64 // preview.shape[1], preview.shape[2], -1, 3).mean((2, 4))
    error, unrelated = (np.abs(p.astype(float) - small).mean() for p in (preview, preview[::-1]))
    assert error < unrelated, "a preview resembles its own image more than its neighbour's"


def test_an_error_on_every_rank_ends_the_job_and_not_the_gang(gang: Gang, reference: np.ndarray):
    pids = [rank["pid"] for rank in gang.status().ranks]
    with pytest.raises(JobFailed, match="not divisible"):
        gang.submit(job(size="144x144")).future.result(60)  # 81 tokens over 2 ranks
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)
    assert [rank["pid"] for rank in gang.status().ranks] == pids


@pytest.mark.parametrize("step", [1, 2, 5])
def test_abort_of_a_running_job(gang: Gang, reference: np.ndarray, step: int):
    restarts = gang.status().restarts
    handles, seen = [], []
    submitted = threading.Event()

    def stop(progress: Progress) -> None:
        seen.append(progress.step)
        submitted.wait(5)
        if progress.step == step:
            handles[0].abort("client gone")

    handles.append(gang.submit(job(steps=LONG), on_progress=stop))
    submitted.set()
    with pytest.raises(JobCancelled, match="client gone"):
        handles[0].future.result(60)
    assert seen[-1] < LONG / 2
    np.testing.assert_array_equal(gang.submit(job()).future.result(60).images, reference)
    assert gang.status().restarts == restarts


def test_a_queued_job_is_dropped_at_once(gang: Gang):
    running = gang.submit(job(steps=LONG))
    wait_until(lambda: gang.status().jobs == [running.job.id])
    others = [gang.submit(job(steps=LONG)) for _ in range(7)]  # with which all places but the last are taken
    wait_until(lambda: len(gang.status().jobs) == 7)
    queued = gang.submit(job(steps=LONG))
    queued.abort("changed my mind")
    with pytest.raises(JobCancelled, match="changed my mind"):
        queued.future.result(0)
    for handle in (running, *others):
        assert not handle.future.done()
        handle.abort("enough")
        with pytest.raises(JobCancelled, match="enough"):
            handle.future.result(60)


def test_deadlines(gang: Gang, reference: np.ndarray):
    began = time.monotonic()
    running = gang.submit(job(steps=LONG), deadline=began + 4)
    hasty = gang.submit(job(steps=LONG), deadline=began + 0.5)
    patient = gang.submit(job())
    with pytest.raises(DeadlineExceeded):
        hasty.future.result(60)
    assert not running.future.done(), "a job that is late takes no other along"
    with pytest.raises(DeadlineExceeded):
        running.future.result(60)
    assert time.monotonic() - began < 15, "and the job takes longer by itself"
    np.testing.assert_allclose(patient.future.result(60).images, reference, atol=1, rtol=0)  # it shared calls
