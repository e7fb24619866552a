"""Admission by predicted seconds and by count."""

import re
from dataclasses import replace

import pytest

from cache_core import NoCacheOptions
from raycache.gang.costs import Work
from raycache.size import Size
from tests.helpers.admissions import SMALL, Clock, admission, learned, refusal, teach


def test_nothing_is_known_at_first():
    assert admission().let_in(timeout_s=1.0).seconds == 0.0


def test_by_count():
    queue = learned(10.0, max_queued_requests=2)
    tickets = [queue.let_in() for _ in range(3)]
    error = refusal(queue)
    assert (error.status, error.code) == (429, "queue_full")
    assert 10 <= error.retry_after_s <= 13, "as predicted from two jobs, and some more"
    queue.release(tickets[0])
    queue.let_in()


def test_by_seconds():
    queue = learned(10.0, max_queued_seconds=25.0)
    queue.let_in()
    queue.let_in()
    error = refusal(queue)
    assert (error.status, error.code) == (429, "queue_full")
    assert 5 <= error.retry_after_s <= 7


LONG = Work(Size(512, 512), 4, 100, NoCacheOptions())


def test_one_job_longer_than_may_queue_is_refused_also_when_nobody_waits():
    """It was admitted, and everybody else told to come back when it is done: after 1161 s."""
    queue = learned(10.0, max_queued_seconds=60.0)
    error = refusal(queue, LONG, timeout_s=1e5)
    assert (error.status, error.code, error.retry_after_s) == (400, "job_too_long", None)
    ways = [
        {name.replace("num_inference_", "").replace("n", "images", name == "n"): int(value) for name, value in found}
        for found in (re.findall(r"(\w+)=(\d+)", way) for way in error.message.split(" or "))
    ]
    assert ways
    for way in ways:
        learned(10.0, max_queued_seconds=60.0).let_in(replace(LONG, **way), 1e5)
        more = replace(LONG, **{**way, "steps": way["steps"] + 1})
        assert refusal(learned(10.0, max_queued_seconds=60.0), more, 1e5).code == "job_too_long"
    several = refusal(learned(10.0, max_queued_seconds=12.0), replace(SMALL, images=4))
    assert several.message.endswith("num_inference_steps=2 or n=1 would fit")
    assert "smaller size" in refusal(learned(10.0, max_queued_seconds=0.5), LONG).message


def test_the_bound_of_one_job_is_a_limit_of_its_own():
    long = learned(10.0, max_queued_seconds=60.0)
    long.policy = long.policy.changed({"limits": {"max_job_seconds": 1e6}})
    long.let_in(LONG, 1e5)
    short = learned(10.0, max_queued_seconds=60.0)
    short.policy = short.policy.changed({"limits": {"max_job_seconds": 5.0}})
    assert refusal(short).code == "job_too_long"


def test_after_the_warm_up_alone_the_bound_is_twice_as_wide():
    """Its draws may be slow, and who is never let in can teach nothing else."""
    queue = admission(max_queued_seconds=60.0)
    teach(queue, 100.0, cold=True)
    queue.release(queue.let_in())
    teach(queue, 100.0)
    teach(queue, 100.0)
    assert refusal(queue).code == "job_too_long"


def test_a_running_job_counts_for_what_is_left_of_it():
    clock = Clock()
    queue = learned(10.0, clock=clock)
    first = queue.let_in()
    second = queue.let_in()
    assert queue.loaded() == (1, 1, 20.0)
    clock.now = 4.0
    assert queue.loaded() == (1, 1, 16.0)
    clock.now = 30.0
    assert queue.loaded() == (1, 1, 10.0)
    queue.release(first)
    queue.gang.jobs = (second.job,)
    assert queue.loaded() == (0, 1, 10.0)
    clock.now = 32.0
    assert queue.loaded() == (0, 1, 8.0)


def test_a_deadline_behind_the_queue_is_refused_at_once():
    queue = learned(10.0)
    queue.let_in()
    error = refusal(queue, timeout_s=15.0)
    assert (error.status, error.param, error.code) == (429, "timeout_s", "deadline_unreachable")
    assert 5 <= error.retry_after_s <= 7


def test_a_deadline_that_no_waiting_helps_is_400():
    error = refusal(learned(10.0), timeout_s=5.0)
    assert (error.status, error.param) == (400, "timeout_s")
    assert "nearest legal value: 10" in error.message


def test_one_slow_job_does_not_lock_its_kind_out():
    queue = learned(1000.0, times=1)
    queue.release(queue.let_in())
    teach(queue, 1.0)
    queue.let_in()


def test_a_deadline_before_new_ranks_are_there_is_for_another_engine():
    queue = learned(10.0)
    queue.gang.ready_in_s = 30.0
    error = refusal(queue, timeout_s=35.0)  # after five seconds 25 are left of the rebuild
    assert (error.status, error.code, error.retry_after_s) == (503, "gang_restarting", 6)
    queue.let_in(timeout_s=45.0)
    assert "about 30 s" in refusal(queue, timeout_s=45.0).message  # ... behind the one before


def test_a_full_queue_is_refused_without_a_forecast(monkeypatch: pytest.MonkeyPatch):
    queue = learned(10.0, max_queued_requests=2)
    for _ in range(3):
        queue.let_in()
    refusal(queue)
    monkeypatch.setattr("raycache.engine.prediction.forecast", None)
    for _ in range(100):
        assert refusal(queue).code == "queue_full"


def test_a_place_is_given_back_while_a_forecast_is_made():
    """The gang's thread does it, and draws nothing meanwhile."""
    queue = learned(10.0)
    ticket = queue.let_in()
    with queue._lock:
        queue.release(ticket)
    assert queue.loaded() == (0, 0, 0.0)
