"""Admission by predicted seconds and by count, with a clock that the test turns."""

import numpy as np
import pytest

from cache_core import NoCacheOptions
from raycache.admission import Admission
from raycache.costs import Costs, Work
from raycache.errors import RequestError
from raycache.job import JobOutput
from raycache.settings import AppSettings

SMALL = Work(128, 128, 1, 10, NoCacheOptions())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, **policy) -> Admission:
    base = AppSettings.model_validate({"model": {"path": "noise"}}).policy
    return Admission(base.model_copy(update=policy), Costs(), clock or Clock())


def teach(queue: Admission, seconds: float) -> None:
    phases = {"encode_s": 0.1 * seconds, "denoise_s": 0.8 * seconds, "decode_s": 0.1 * seconds}
    queue._costs.learn(SMALL, JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, **phases))


def learned(seconds: float, times: int = 2, **kwargs) -> Admission:
    queue = admission(**kwargs)
    for _ in range(times):
        teach(queue, seconds)
    return queue


def refusal(queue: Admission, work: Work = SMALL, timeout_s: float = 300.0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        queue.admit(work, timeout_s)
    return caught.value


def test_nothing_is_known_at_first():
    assert admission().admit(SMALL, 1.0).seconds == 0.0


def test_by_count():
    queue = learned(10.0, max_queued_requests=2)
    tickets = [queue.admit(SMALL, 300.0) for _ in range(3)]
    error = refusal(queue)
    assert (error.status, error.code) == (429, "queue_full")
    assert error.retry_after_s == 10.0
    queue.release(tickets[0])
    queue.admit(SMALL, 300.0)


def test_by_seconds():
    queue = learned(10.0, max_queued_seconds=25.0)
    queue.admit(SMALL, 300.0)
    queue.admit(SMALL, 300.0)
    error = refusal(queue)
    assert (error.status, error.code) == (429, "queue_full")
    assert error.retry_after_s == pytest.approx(5.0)


def test_one_job_longer_than_the_queue_is_still_drawn_when_nobody_waits():
    queue = learned(60.0, max_queued_seconds=25.0)
    queue.admit(SMALL, 300.0)


def test_a_running_job_counts_for_what_is_left_of_it():
    clock = Clock()
    queue = learned(10.0, clock=clock)
    first = queue.admit(SMALL, 300.0)
    queue.admit(SMALL, 300.0)
    assert queue.load() == (1, True, 20.0)
    clock.now = 4.0
    assert queue.load() == (1, True, 16.0)
    clock.now = 30.0
    assert queue.load() == (1, True, 10.0)
    queue.release(first)
    clock.now = 32.0
    assert queue.load() == (0, True, 8.0)


def test_a_deadline_behind_the_queue_is_refused_at_once():
    queue = learned(10.0)
    queue.admit(SMALL, 300.0)
    error = refusal(queue, timeout_s=15.0)
    assert (error.status, error.param, error.code) == (429, "timeout_s", "deadline_unreachable")
    assert error.retry_after_s == pytest.approx(5.0)


def test_a_deadline_that_no_waiting_helps_is_400():
    error = refusal(learned(10.0), timeout_s=5.0)
    assert (error.status, error.param) == (400, "timeout_s")
    assert "nearest legal value: 10" in error.message


def test_one_slow_job_does_not_lock_its_kind_out():
    queue = learned(1000.0, times=1)
    queue.release(queue.admit(SMALL, 300.0))
    teach(queue, 1.0)
    queue.admit(SMALL, 300.0)


def test_a_deadline_before_new_ranks_are_there_is_for_another_engine():
    queue = learned(10.0)
    with pytest.raises(RequestError) as caught:
        queue.admit(SMALL, 35.0, mending_s=30.0)
    error = caught.value
    assert (error.status, error.code, error.retry_after_s) == (503, "gang_restarting", 30.0)
    queue.admit(SMALL, 45.0, mending_s=30.0)
    with pytest.raises(RequestError, match="about 30 s"):
        queue.admit(SMALL, 45.0, mending_s=30.0)  # ... behind the one before
