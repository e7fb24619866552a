"""Admission by predicted seconds and by count, with a clock that the test turns."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from cache_core import NoCacheOptions
from raycache.engine.admission import Admission, Ticket
from raycache.gang.costs import Costs, Work
from raycache.gang.forecast import forecast
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.settings import AppSettings
from raycache.size import Size

SMALL = Work(Size(128, 128), 1, 10, NoCacheOptions())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Gang:
    """What the gang tells; it has not begun any job that it is not said to have."""

    jobs: tuple[JobState, ...] = ()
    accounts, ready_in_s = Accounts(), 0.0
    rules = Rules(scheduling="fifo", max_active=1)

    def __call__(self) -> Outlook:
        return Outlook(self.jobs, self.accounts, self.rules, self.ready_in_s)


class Queue(Admission):
    """Admission in front of such a gang."""

    gang: Gang

    def __init__(self, policy, clock: Clock) -> None:
        self.gang, self.names = Gang(), itertools.count()
        super().__init__(policy, Costs(), self.gang, clock)

    def let_in(self, work: Work = SMALL, timeout_s: float = 300.0, **more) -> Ticket:
        return self.admit(f"job {next(self.names)}", work, timeout_s, **more)

    def loaded(self) -> tuple[int, int, float]:
        load = self.load()
        return load.queued, load.running, round(load.wait_s, 6)


def admission(clock: Clock | None = None, **policy) -> Queue:
    base = AppSettings.model_validate({"model": {"path": "noise"}}).policy
    return Queue(base.model_copy(update=policy), clock or Clock())


def teach(queue: Admission, seconds: float, cold: bool = False) -> None:
    phases = {"encode_s": 0.1 * seconds, "denoise_s": 0.8 * seconds, "decode_s": 0.1 * seconds}
    queue._costs.learn(SMALL, JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, **phases), cold=cold)


def learned(seconds: float, times: int = 2, **kwargs) -> Queue:
    queue = admission(**kwargs)
    for _ in range(times):
        teach(queue, seconds)
    return queue


def refusal(queue: Queue, work: Work = SMALL, timeout_s: float = 300.0, **more) -> RequestError:
    with pytest.raises(RequestError) as caught:
        queue.let_in(work, timeout_s, **more)
    return caught.value


def test_nothing_is_known_at_first():
    assert admission().let_in(timeout_s=1.0).seconds == 0.0


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
