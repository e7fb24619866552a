"""The engine over a fake gang: one answer per job, whatever happens to the job."""

import asyncio
import gc
import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from raycache.engine.convert import preview_steps
from raycache.engine.engine import Engine
from raycache.gang.costs import Work
from raycache.protocol.errors import RequestError
from raycache.protocol.job import GangStatus, JobOutput
from raycache.protocol.job_errors import DeadlineExceeded, GangBroken, GangRestarting, JobCancelled, JobFailed
from raycache.protocol.schemas import GenerationResult, PreviewEvent, ProgressEvent, QueuedEvent
from raycache.size import Size
from tests.helpers.fake_gang import SETTINGS, FakeGang, finish, order, started


@pytest.fixture
def engine():
    return Engine(SETTINGS, FakeGang)


async def test_what_the_gang_learned_while_starting_is_known_from_the_first_job_on(engine):
    """Nothing is drawn a second time for it, and nobody waits for a first image."""
    assert engine._gang.jobs == []
    drawn = order(num_inference_steps=10)
    engine._gang.costs.learn(Work(Size(128, 128), 1, 10, drawn.cache), output_of(4.0), cold=True)
    await started(engine, num_inference_steps=10)
    assert engine.status().predicted_queue_s == pytest.approx(4.0, rel=0.2)
    stats = await engine.record_autoscaling_stats()
    assert stats["predicted_queue_s"] > 3
    late = await asyncio.wait_for(engine.generate(order(num_inference_steps=20, timeout_s=5)), 5)
    assert (late.status, late.code) == (429, "deadline_unreachable")
    events = engine.generate_stream(order(num_inference_steps=10))
    first = asyncio.create_task(anext(events))
    while len(engine._gang.jobs) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.25)  # what is told may be so old
    engine._gang.jobs[-1].on_progress(SimpleNamespace(step=5, steps=10, cached=[], residual_diff=[], preview=None))
    assert (await first).seconds_left == pytest.approx(1.9, rel=0.2)
    await events.aclose()


def output_of(seconds: float) -> JobOutput:
    phases = {"encode_s": 0.1 * seconds, "denoise_s": 0.8 * seconds, "decode_s": 0.1 * seconds}
    return JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, **phases)


def test_a_noise_model_is_announced(caplog):
    with caplog.at_level(logging.INFO, "ray.serve"):
        Engine(SETTINGS, FakeGang)
    assert "Ready after" in caplog.text
    assert "NOISE" in caplog.text


async def test_an_image(engine):
    call, running = await started(engine, n=2)
    assert [image.seed for image in running.job.images] == [7, 8]
    assert running.job.preview_steps == ()
    assert running.deadline == pytest.approx(time.monotonic() + 300, abs=5)
    finish(running)
    result = await call
    assert isinstance(result, GenerationResult)
    assert [image.shape for image in result.images] == [(128, 128, 3)] * 2
    assert result.seeds == [7, 8]
    assert (result.times.encode, result.times.denoise, result.times.decode) == (0.1, 0.7, 0.2)
    assert engine._gang.aborts == []


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (DeadlineExceeded("late"), 504, "deadline_exceeded", None),
        (GangRestarting("rank 1 died", 7.0), 503, "gang_restarting", 7.0),
        (JobCancelled("no"), 499, "cancelled", None),
        (JobFailed("CUDA error at /secret"), 500, "job_failed", None),
    ],
)
async def test_failures_are_answers(engine, error, status, code, retry):
    call, running = await started(engine)
    running.future.set_exception(error)
    answer = await call
    assert isinstance(answer, RequestError)
    assert (answer.status, answer.code, answer.retry_after_s) == (status, code, retry)
    assert "secret" not in answer.message
    assert engine.status().running is False


async def test_a_full_queue_refuses_and_recovers(engine):
    (first, one), (second, two) = await started(engine), await started(engine)
    refusal = await asyncio.wait_for(engine.generate(order()), 5)
    assert (refusal.status, refusal.code) == (429, "queue_full")
    assert engine.status().queued == 1
    finish(one)
    finish(two)
    assert all(isinstance(result, GenerationResult) for result in await asyncio.gather(first, second))
    third, three = await started(engine)
    finish(three)
    assert isinstance(await third, GenerationResult)


async def test_a_job_that_its_ranks_took_along_is_told_when_it_would_get_in(engine, monkeypatch):
    """The gang can only say when there will be ranks again; those who wait are drawn first."""
    engine._gang.costs.learn(Work(Size(128, 128), 1, 10, order().cache), output_of(20.0))
    (first, one), (second, two) = [await started(engine, num_inference_steps=10) for _ in range(2)]
    recovering = GangStatus("replica-1", False, 1, 0, None, ready_in_s=30.0)
    monkeypatch.setattr(engine._gang, "status", lambda: recovering)
    one.future.set_exception(GangRestarting("rank 1 died", 7.0))
    answer = await first
    assert (answer.status, answer.code) == (503, "gang_restarting")
    assert answer.retry_after_s >= 1
    assert engine.status().predicted_queue_s == pytest.approx(50, rel=0.05)
    late = await asyncio.wait_for(engine.generate(order(num_inference_steps=10, timeout_s=60)), 5)
    assert (late.status, late.code) == (503, "gang_restarting")
    assert 50 <= late.retry_after_s <= 65, "the queue holds two: the one in it, and the one that was told to come back"
    finish(two)
    await second
    assert engine.status().predicted_queue_s == 30, "nobody waits, and a job would start when there are ranks"
    assert (await engine.record_autoscaling_stats())["predicted_queue_s"] == 0, "but that is no work"


async def test_cancelling_the_call_aborts_the_job(engine):
    call, running = await started(engine)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert engine._gang.aborts == ["the client disconnected"]
    # The gang still holds the job until its next step; the place in the queue is its own until then.
    assert engine.status().running is True
    assert not running.future.cancelled()
    running.future.set_exception(JobCancelled("the client disconnected"))
    assert engine.status().running is False


async def test_no_exception_is_left_unread(engine, caplog):
    call, running = await started(engine)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    running.future.set_exception(JobCancelled("gone"))
    await asyncio.sleep(0.01)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_stream(engine):
    events = engine.generate_stream(order(partial_images=1, num_inference_steps=4))
    first = asyncio.create_task(anext(events))
    while not engine._gang.jobs:
        await asyncio.sleep(0)
    running = engine._gang.jobs[-1]
    assert running.job.preview_steps == (1,)
    preview = np.zeros((1, 64, 64, 3), np.uint8)
    for step in (1, 2):
        fields = {"step": step, "steps": 4, "cached": [False], "residual_diff": [None]}
        running.on_progress(SimpleNamespace(**fields, preview=preview if step == 2 else None))
    finish(running)
    got = [await first] + [event async for event in events]
    assert [type(event) for event in got] == [ProgressEvent, ProgressEvent, PreviewEvent, GenerationResult]
    assert got[2].images[0].shape == (64, 64, 3)


async def test_closing_a_stream_aborts_the_job(engine):
    events = engine.generate_stream(order())
    first = asyncio.create_task(anext(events))
    while not engine._gang.jobs:
        await asyncio.sleep(0)
    engine._gang.jobs[-1].on_progress(SimpleNamespace(step=1, steps=28, cached=[], residual_diff=[], preview=None))
    await first
    await events.aclose()
    assert engine._gang.aborts == ["the client disconnected"]


async def test_an_ingress_is_told_of_the_admission_while_the_job_waits(engine):
    _, running = await started(engine)
    events = engine.generate_stream(order(), "an ingress")
    assert await asyncio.wait_for(anext(events), 5) == QueuedEvent(ahead=1)
    assert engine.status().queued == 1
    assert not running.future.done()
    await events.aclose()


async def test_priorities_and_keys_reach_the_gang(engine):
    engine.reconfigure({"limits": {"keys": {"blue": {"weight": 3.0, "max_priority": "high"}}}})
    calls = [
        asyncio.create_task(engine.generate(order(priority=priority), None, key))
        for key, priority in (("blue", "high"), ("red", "low"))
    ]
    async with asyncio.timeout(5):
        while len(engine._gang.jobs) < 2:
            await asyncio.sleep(0)
    assert [(job.caller, job.weight) for job in engine._gang.jobs] == [("blue\nhigh", 12.0), ("red\nlow", 0.25)]
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("caller", [None, "an ingress"])
async def test_a_refused_stream_says_only_that(engine, caller):
    await started(engine)
    await started(engine)
    (answer,) = [event async for event in engine.generate_stream(order(), caller)]
    assert (answer.status, answer.code) == (429, "queue_full")


async def test_the_policy_changes_without_a_restart(engine):
    engine.reconfigure({"cache": {"type": "none"}, "max_queued_requests": 0})
    assert engine.status().policy.cache.type == "none"
    await started(engine)
    refusal = await asyncio.wait_for(engine.generate(order()), 5)
    assert refusal.code == "queue_full"
    engine.reconfigure({})
    assert engine.status().policy == SETTINGS.policy


def test_a_wrong_policy_changes_nothing(engine, caplog):
    changes = ({"cache": {"type": "DBCache", "Fn_compute_blocks": 99}}, {"nonsense": 1})
    for change in changes:
        with pytest.raises(ValueError, match=r"Fn_compute_blocks|nonsense"):
            engine.reconfigure(change)
    assert engine.poll("ingress").policy == SETTINGS.policy
    for change in changes:  # in service: raising would make Serve replace a replica that draws
        engine.reconfigure(change)
        assert next(iter(change)) in caplog.text
    assert engine.status().policy == SETTINGS.policy


def test_health_is_the_gangs(engine):
    engine.check_health()
    engine._gang.sick = RuntimeError("gang gone")
    with pytest.raises(RuntimeError, match="gang gone"):
        engine.check_health()


def test_an_engine_beyond_repair_leaves(engine, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(Engine, "_leave", staticmethod(lambda code: left.set()))
    engine._gang.sick = GangBroken("6 restarts")
    with pytest.raises(GangBroken):
        engine.check_health()
    assert not left.is_set(), "answers under way must get out"
    assert left.wait(5)


def test_a_deleted_engine_stops_its_gang(engine):
    gang = engine._gang
    engine.__del__()
    assert gang.stopped


@pytest.mark.parametrize(("steps", "count", "expected"), [(28, 3, (6, 13, 20)), (28, 0, ()), (1, 3, ()), (2, 3, (0,))])
def test_previews_are_spread(steps, count, expected):
    assert preview_steps(steps, count) == expected
