"""Admission where many jobs are drawn at once, and what those who wait are told."""

from dataclasses import replace

import pytest

from raycache.gang.forecast import forecast
from raycache.gang.schedule import Rules
from tests.helpers.admissions import SMALL, Clock, Queue, admission, learned, refusal


def test_who_is_ahead_in_the_queue():
    """By the schedule: whoever has more weight, or less work, is started first."""
    queue = learned(10.0, clock=(clock := Clock()))
    queue.gang.rules = Rules(max_active=1)
    first = queue.let_in()
    long = queue.let_in(replace(SMALL, steps=40))
    late = queue.let_in()
    queue.gang.jobs = (replace(first.job, calls_done=2), long.job, late.job)
    clock.now += 1
    assert [queue.ahead(ticket.job.id) for ticket in (first, long, late)] == [0, 1, 0]
    low, high = (queue.let_in(replace(SMALL, steps=20), priority=priority) for priority in ("low", "high"))
    queue.gang.jobs = (*queue.gang.jobs, low.job, high.job)
    clock.now += 1
    assert queue.ahead(high.job.id) < queue.ahead(long.job.id)
    assert queue.ahead("nobody") == 0


def fair(seconds: float = 10.0, **kwargs) -> Queue:
    """Many jobs at once, each call with one job's rows."""
    queue = learned(seconds, **kwargs)
    queue.gang.rules = Rules(max_rows=1)
    return queue


def test_another_caller_does_not_wait_behind_a_flood():
    many, fifo = fair(max_queued_seconds=1000.0), learned(10.0, max_queued_seconds=1000.0)
    for queue in (many, fifo):
        for _ in range(6):
            queue.let_in(key="flood")
        assert queue.load().backlog_s == pytest.approx(60.0)
    assert refusal(fifo, key="other", timeout_s=25.0).code == "deadline_unreachable"
    other = many.let_in(key="other", timeout_s=25.0)  # every other call is its own
    assert 15 <= many.left_s(other.job.id) <= 25


def test_nobody_gets_in_for_whom_another_would_be_late():
    queue = fair(max_queued_seconds=1000.0)
    kept = [queue.let_in(timeout_s=15.0), queue.let_in(timeout_s=27.0)]
    error = refusal(queue, timeout_s=26.0)  # it would be in time, and the second not
    assert (error.code, error.param) == ("deadline_unreachable", "timeout_s")
    assert "make 1 others miss" in error.message
    assert 4 <= error.retry_after_s <= 20
    queue.let_in(timeout_s=50.0)
    for ticket, most in zip(kept, (15.0, 27.0), strict=True):
        assert queue.left_s(ticket.job.id) <= most


def test_how_many_wait_where_many_are_drawn_at_once():
    queue = fair(max_queued_requests=2, max_queued_seconds=1000.0)
    queue.gang.rules = Rules(max_rows=1, max_active=2)
    tickets = [queue.let_in() for _ in range(4)]
    assert (refusal(queue).code, queue.loaded()[:2]) == ("queue_full", (3, 1))
    queue.gang.jobs = tuple(replace(t.job, calls_done=1 if i < 2 else None) for i, t in enumerate(tickets))
    queue._clock.now += 0.3
    assert queue.loaded()[:2] == (2, 2)


def test_seconds_left_follow_what_the_gang_tells():
    clock = Clock()
    queue = learned(10.0, clock=clock)
    first, second = queue.let_in(), queue.let_in()
    assert queue.left_s(first.job.id) == pytest.approx(10.0)
    assert queue.left_s(second.job.id) == pytest.approx(20.0)
    clock.now = 3.0
    queue.gang.jobs = (replace(first.job, calls_done=8), second.job)
    assert queue.left_s(first.job.id) == pytest.approx(2 * 0.8 + 1.0)
    assert queue.left_s(second.job.id) == pytest.approx(12.6)
    clock.now = 5.6
    queue.gang.jobs = (second.job,)  # done, and not given back yet
    assert queue.left_s(first.job.id) is None
    assert queue.left_s(second.job.id) == pytest.approx(10.0)
    assert admission().left_s("nobody's") is None


def test_what_is_told_is_predicted_at_most_five_times_a_second(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    queue = learned(10.0, clock=clock)
    tickets = [queue.let_in() for _ in range(3)]
    made: list[int] = []

    def counted(jobs, *rest):
        made.append(len(list(jobs)))
        return forecast(jobs, *rest)

    monkeypatch.setattr("raycache.engine.prediction.forecast", counted)
    for step in range(100):
        clock.now = 0.01 * step
        queue.gang.jobs = tuple(replace(ticket.job, calls_done=step // 10) for ticket in tickets)
        for ticket in tickets:
            queue.left_s(ticket.job.id)
        queue.load()
    assert len(made) <= 2 * 6, "with and without a job more, every 0.2 s"
