"""Ticks of a living gang: when the next one is sent, and what follows from reports."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from raycache.gang.planner import TickPlanner
from raycache.gang.schedule import Rules
from raycache.protocol.heartbeat import Failure, Phase
from raycache.protocol.job import JobOutput
from raycache.protocol.tick import Called, Tick, TickReport
from tests.helpers.jobs import make_job
from tests.helpers.plain_costs import PlainCosts, plain_job


def planner(call_s: float = 1.0, **rules: float) -> TickPlanner:
    """Its calls take so long."""
    return TickPlanner(PlainCosts(row=call_s), Rules(**rules))


def add(plan: TickPlanner, name: str, calls: int = 3, **fields: float) -> None:
    plan.add(make_job(name, steps=calls), plain_job(name, calls, **fields))


def carried_out(tick: Tick, *, done: tuple[str, ...] = (), decodes: bool = False) -> TickReport:
    """What ranks say to whom nothing happens."""
    told = TickReport(tick.number, started_s={job.id: 0.0 for job in tick.start}, done=list(done))
    told.calls = [Called(names, 1.0, (1.0,) * len(names)) for names in tick.calls]
    if decodes:
        told.decoding = list(tick.end)
    else:
        told.outputs = dict.fromkeys(tick.end, OUTPUT)
    return told


OUTPUT = JobOutput(np.zeros((1, 8, 8, 3), np.uint8), None, 0.0, 0.0, 0.0)


def test_behind_a_short_tick_the_next_is_sent_at_once_and_no_third():
    plan = planner(call_s=0.1)
    add(plan, "a", 9)
    assert [tick is not None for tick in (plan.next(0.0), plan.next(0.0), plan.next(0.0))] == [True, True, False]
    assert plan.next_in_s(0.0) == math.inf


def test_behind_a_long_tick_the_next_is_sent_just_before_its_end():
    plan = planner(call_s=2.0)
    add(plan, "a", 9)
    first = plan.next(10.0)
    assert first is not None
    assert plan.next(10.1) is None
    assert plan.next_in_s(10.5) == pytest.approx(1.47)
    assert plan.next(11.96) is None
    second = plan.next(11.98)
    assert second is not None, "the ranks need not wait for it"
    assert (second.knows, second.calls) == (first.number - 1, (("a",),))
    assert plan.next_in_s(12.0) == math.inf


def test_a_long_tick_that_comes_back_early_is_followed_at_once():
    plan = planner(call_s=2.0)
    add(plan, "a", 9)
    first = plan.next(0.0)
    assert first is not None
    plan.came(carried_out(first), 0.5)
    assert plan.next_in_s(0.5) == 0.0
    assert plan.next(0.5) is not None


def drawn(plan: TickPlanner) -> Tick:
    """The tick that ends job ``a``, of one call."""
    first = plan.next(0.0)
    assert first is not None
    plan.came(carried_out(first, done=("a",)), 1.0)
    last = plan.next(1.0)
    assert last is not None
    assert last.end == ("a",)
    return last


@pytest.mark.parametrize("call_s", [0.01, 1.0])
@pytest.mark.parametrize(("expected", "real"), [(6, 3), (6, 5), (9, 1), (3, 6), (1, 4), (3, 3)])
def test_a_pipeline_that_makes_fewer_or_more_calls_than_expected_comes_to_its_end(
    call_s: float, expected: int, real: int
):
    """Also where a call of it, that it does not need any more, was sent ahead."""
    plan = planner(call_s=call_s)
    add(plan, "a", expected)
    sent: list[Tick] = []
    made, ticks = 0, 0
    over: list[str] = []
    while not over:
        now = ticks * call_s
        while (tick := plan.next(now)) is not None:
            sent.append(tick)
        assert sent, "nothing is under way, and the job is not over"
        ticks += 1
        assert ticks < 3 * max(expected, real), "ticks without end"
        tick = sent.pop(0)
        told = TickReport(tick.number, started_s={job.id: 0.0 for job in tick.start})
        if tick.calls and made < real:  # the ranks leave out a call of a job that waits for none
            made += 1
            told.calls, told.done = [Called(("a",), call_s, (1.0,))], ["a"] if made == real else []
        if tick.end and made == real:
            told.outputs = {"a": OUTPUT}
        over = plan.came(told, now + call_s)
    assert (over, made) == (["a"], real)


def test_images_that_are_to_come_are_fetched_by_an_empty_tick_where_there_is_nothing_else():
    plan = planner()
    add(plan, "a", 1)
    last = drawn(plan)
    assert plan.next(1.1) is None, "what comes next may bring them"
    assert plan.came(carried_out(last, decodes=True), 2.0) == []
    fetch = plan.next(2.0)
    assert fetch == Tick(last.number + 1, last.number)
    assert plan.came(TickReport(fetch.number, outputs={"a": OUTPUT}), 3.0) == ["a"]
    assert plan.next(3.0) is None
    assert plan.outlook.jobs == ()


def test_a_job_ends_once_while_its_images_are_to_come_beside_others_calls():
    plan = planner()
    add(plan, "a", 1)
    last = drawn(plan)
    add(plan, "b", 2)
    plan.came(carried_out(last, decodes=True), 2.0)
    following = plan.next(2.0)
    assert following is not None
    assert (following.end, following.calls) == ((), (("b",),))
    assert plan.active == ["a", "b"]


def test_images_that_were_to_come_from_lost_ranks_are_drawn_again():
    plan = planner()
    add(plan, "a", 1)
    plan.came(carried_out(drawn(plan), decodes=True), 2.0)
    plan.lost()
    plan.begin(7, Rules())
    again = plan.next(5.0)
    assert again is not None
    assert [job.id for job in again.start] == ["a"]


def test_a_skipped_tick_changes_nothing_of_what_is_to_come():
    plan = planner()
    add(plan, "a", 1)
    plan.came(carried_out(drawn(plan), decodes=True), 2.0)
    fetch = plan.next(2.0)
    assert fetch is not None
    assert plan.came(TickReport(fetch.number, skipped=True), 3.0) == []
    again = plan.next(3.0)
    assert again is not None
    assert replace(again, number=0, knows=0) == Tick(0, 0)


def test_a_tick_that_was_sent_ahead_begins_when_the_one_before_is_done():
    """One that took twice as long as expected must not make the next two go out at once."""
    plan = planner(call_s=2.0)
    add(plan, "a", 9)
    first, second = plan.next(0.0), plan.next(1.98)
    assert first is not None
    assert second is not None
    plan.came(carried_out(first), 4.0)
    assert plan.next_in_s(4.0) == pytest.approx(1.97)


def test_images_that_are_due_do_not_wait_for_another_jobs_call():
    plan = planner()
    add(plan, "a", 1, deadline=2.0)
    last = drawn(plan)
    add(plan, "b", 2)
    assert plan.next(1.1) is None, "what brings the images would come too late"
    plan.came(carried_out(last, decodes=True), 1.2)
    fetch = plan.next(1.2)
    assert fetch is not None
    assert (fetch.calls, fetch.start) == ((), ())
    plan.came(TickReport(fetch.number, outputs={"a": OUTPUT}), 1.3)
    following = plan.next(1.3)
    assert following is not None
    assert following.calls == (("b",),)


@pytest.mark.parametrize(("phase", "ahead"), [("decode", True), ("denoise", False)])
def test_only_a_failure_that_broke_a_tick_off_makes_the_next_ones_wait(phase: Phase, ahead: bool):
    plan = planner(call_s=0.1)
    for name in ("a", "b"):
        add(plan, name, 9)
    first, second = plan.next(0.0), plan.next(0.0)
    assert first is not None
    assert second is not None
    told = carried_out(first)
    told.failures = [Failure("error", ("b",), phase, 1, "RuntimeError", "on purpose", "")]
    plan.came(told, 0.1)
    assert (plan.next(0.1) is not None) == ahead
