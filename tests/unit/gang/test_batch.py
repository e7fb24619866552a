"""Which jobs share a batch, and what each gets of it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cache_core import DBCacheOptions, FBCacheOptions, NoCacheOptions
from raycache.gang.batch import JobBatch, take_mates
from raycache.gang.queue import JobHandle, JobQueue
from raycache.protocol.job import DeadlineExceeded, GangRestarting, Job, JobCancelled, JobOutput, Progress


def handle(name: str, n: int = 1, deadline: float | None = None, told: list | None = None, **fields) -> JobHandle:
    job = Job(
        **(
            {
                "id": name,
                "prompt": f"prompt {name}",
                "width": 64,
                "height": 64,
                "seeds": tuple(range(n)),
                "num_inference_steps": 4,
                "guidance_scale": 3.5,
                "cache": DBCacheOptions(),
            }
            | fields
        )
    )
    return JobHandle(job, deadline, None if told is None else told.append)


def queue_of(*handles: JobHandle) -> JobQueue:
    queue = JobQueue()
    for one in handles:
        assert queue.put(one)
    return queue


def output(n: int) -> JobOutput:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    report = {
        "method": "DBCache",
        "steps": [{"step": 0, "branch": "cond", "images": [{"cached": bool(k % 2)} for k in range(n)]}],
        "totals": {"steps": 1, "cached_steps": list(range(n)), "computed_block_fraction": [k / 10 for k in range(n)]},
    }
    return JobOutput(images, report, 0.1, 0.2, 0.3, warnings=[["odd"]] * (n - 1) + [[]])


def test_mates_are_taken_in_order_up_to_the_limit():
    first, *others = [handle(name, n) for name, n in (("a", 1), ("b", 2), ("c", 3), ("d", 1), ("e", 1))]
    queue = queue_of(first, *others)
    assert queue.get(1) is first
    assert [mate.job.id for mate in take_mates(queue, first, 4)] == ["a", "b", "d"]
    assert [one.job.id for one in queue.waiting()] == ["c", "e"]
    assert [queue.get(1).job.id, queue.get(1).job.id] == ["c", "e"], "those taken do not come again"


@pytest.mark.parametrize(
    "other",
    [
        {"width": 128},
        {"height": 128},
        {"num_inference_steps": 5},
        {"cache": NoCacheOptions()},
        {"cache": FBCacheOptions()},
        {"cache": DBCacheOptions(warmup_steps=2)},
        {"preview_steps": (1,)},
    ],
)
def test_strangers_are_drawn_alone(other):
    first, second = handle("a"), handle("b", **other)
    queue = queue_of(first, second)
    queue.get(1)
    assert take_mates(queue, first, 8) == [first]
    assert len(queue) == 1
    # And the other way round.
    queue = queue_of(second, first)
    queue.get(1)
    assert take_mates(queue, second, 8) == [second]


def test_a_limit_of_one_is_no_batching():
    first, second = handle("a"), handle("b")
    queue = queue_of(first, second)
    queue.get(1)
    assert take_mates(queue, first, 1) == [first]


def test_jobs_that_are_over_are_no_mates():
    first, second = handle("a"), handle("b")
    queue = queue_of(first, second)
    queue.get(1)
    second.abort("gone")
    assert take_mates(queue, first, 8) == [first]


def test_prompt_guidance_and_thresholds_are_each_ones_own():
    mild, bold = DBCacheOptions(residual_diff_threshold=0.05), DBCacheOptions(residual_diff_threshold=0.5)
    first, second = handle("a", 2, cache=mild), handle("b", cache=bold, guidance_scale=1.0)
    queue = queue_of(first, second)
    queue.get(1)
    mates = take_mates(queue, first, 8)
    assert mates == [first, second]
    merged = JobBatch(mates).job
    assert merged.seeds == (0, 1, 0)
    assert merged.prompts == ("prompt a", "prompt a", "prompt b")
    assert merged.guidance_scales == (3.5, 3.5, 1.0)
    assert merged.caches == (mild, mild, bold)


def test_each_gets_its_own():
    told_a: list[Progress] = []
    told_b: list[Progress] = []
    bold = DBCacheOptions(residual_diff_threshold=0.5)
    a, b = handle("a", 2, told=told_a), handle("b", 1, told=told_b, cache=bold)
    batch = JobBatch([a, b])
    assert batch.start()
    batch.tell([Progress(1, 4, [True, False, True], [0.1, 0.2, 0.3])])
    assert (told_a[0].cached, told_b[0].residual_diff) == ([True, False], [0.3])
    batch.end(output(3))
    assert a.future.result().images[:, 0, 0, 0].tolist() == [0, 1]
    assert b.future.result().images[:, 0, 0, 0].tolist() == [2]
    assert b.future.result().report["totals"]["cached_steps"] == [2]
    assert a.future.result().report["steps"][0]["images"] == [{"cached": False}, {"cached": True}]
    assert [one.future.result().report["options"]["residual_diff_threshold"] for one in (a, b)] == [0.12, 0.5]
    assert (a.future.result().warnings, b.future.result().warnings) == ([["odd"], ["odd"]], [[]])
    assert b.future.result().batch_size == 3


def test_who_leaves_is_answered_at_once_and_the_others_go_on():
    a, b = handle("a"), handle("b")
    batch = JobBatch([a, b])
    batch.start()
    a.abort("gone")
    assert not batch.unwanted()
    with pytest.raises(JobCancelled):
        a.future.result(0)
    batch.end(output(2))
    assert b.future.result(0).images.max() == 1


def test_a_batch_that_nobody_wants_is_unwanted():
    a, b = handle("a"), handle("b", deadline=time.monotonic() - 1)
    batch = JobBatch([a, b])
    batch.start()
    assert not batch.late(time.monotonic())
    a.abort("gone")
    assert batch.unwanted()
    assert batch.reason == "gone"
    with pytest.raises(DeadlineExceeded):
        b.future.result(0)


def test_all_share_an_error():
    a, b = handle("a"), handle("b")
    batch = JobBatch([a, b])
    batch.start()
    batch.end(GangRestarting("fault", 1.0))
    for one in (a, b):
        with pytest.raises(GangRestarting):
            one.future.result(0)


def test_start_takes_up_every_job():
    """A job that was not started could still be ended as if it were queued, while it is drawn."""
    a, b = handle("a"), handle("b")
    JobBatch([a, b]).start()
    b.abort("gone")
    assert not b.future.done()
