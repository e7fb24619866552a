"""Whose turn it is: what plans promise, judged by oracles that share nothing with the scheduler but jobs' numbers."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.gang.schedule import Accounts, Rules
from raycache.gang.scheduler import plan
from tests.helpers.plain_costs import PlainCosts as Costs
from tests.helpers.plain_costs import plain_job as job
from tests.helpers.schedules import ALONE, PROPERTY, one_plan, ran, traces


@given(traces(callers="abc"))
@PROPERTY
def test_work_is_conserved(jobs):
    """Never idle while there is work, and no work done twice: the last end is that of any queue without pauses."""
    told, ticks = ran(jobs, Costs(), ALONE)
    at = 0.0
    for one in sorted(jobs, key=lambda one: one.arrived):
        at = max(at, one.arrived) + one.calls * one.tokens
    assert max(forecast.end for forecast in told.values()) == pytest.approx(at)
    called = [each for _, _, tick in ticks for call in tick.calls for each in call]
    assert {one.id: called.count(one.id) for one in jobs} == {one.id: one.calls for one in jobs}
    assert sorted(each for _, _, tick in ticks for each in tick.start) == sorted(one.id for one in jobs)


@given(traces(callers="abc"), st.integers(1, 4), st.integers(1, 3), st.floats(0.0, 3.0))
@PROPERTY
def test_every_tick_works_and_no_bound_is_broken(jobs, most_active, most_rows, tick_s):
    rules = Rules(max_active=most_active, max_rows=most_rows, tick_s=tick_s)
    told, ticks = ran(jobs, Costs(fixed=2.0, start=0.5, end=0.5), rules)
    assert all(forecast.drawn for forecast in told.values())
    active: set[str] = set()
    for _, _, tick in ticks:
        assert tick.works
        active |= set(tick.start)
        assert len(active) <= most_active
        assert all(len(call) <= most_rows for call in tick.calls)
        active -= set(tick.end)


@given(traces(callers="a", most=9), st.sampled_from([0.05, 0.2, 1.0]))
@PROPERTY
def test_nobody_starves(jobs, ageing):
    """Whoever arrives later than ``work / ageing`` seconds after a job never makes it wait."""
    told, _ = ran(jobs, Costs(), replace(ALONE, ageing=ageing))
    for one in jobs:
        last = one.arrived + one.calls * one.tokens / ageing
        at = 0.0
        for other in sorted(jobs, key=lambda other: other.arrived):
            if other.arrived <= last:
                at = max(at, other.arrived) + other.calls * other.tokens
        # A call that is under way is not broken off.
        assert told[one.id].end <= at + max(other.tokens for other in jobs) + 1e-6


def test_a_long_job_gets_its_turn_under_a_flood_of_short_ones():
    flood = [job(f"s{i}", 2, arrived=2.0 * i) for i in range(200)]
    long = job("long", 20)
    told, _ = ran([long, *flood], Costs(), replace(ALONE, ageing=0.2))
    assert told["long"].end <= 20 / 0.2 + 20 + 4
    told, _ = ran([long, *flood], Costs(), replace(ALONE, ageing=0.0))
    assert told["long"].end > 400  # without ageing it starves, so the trace is one that would show it


def test_a_job_without_a_deadline_does_not_starve_under_deadlines():
    flood = [job(f"s{i}", 2, arrived=2.0 * i, deadline=2.0 * i + 2) for i in range(100)]
    told, _ = ran([job("free", 5), *flood], Costs(), replace(ALONE, patience_s=50.0))
    assert 50 < told["free"].end <= 50 + 5 + 2


@st.composite
def backlogged(draw):
    weights = {name: float(draw(st.integers(1, 5))) for name in "abc"[: draw(st.integers(2, 3))]}
    jobs = []
    for name in weights:
        tokens = float(draw(st.integers(1, 4)))
        jobs += [
            job(f"{name}{i}", draw(st.integers(3, 9)), tokens, caller=name, weight=weights[name]) for i in range(40)
        ]
    return weights, jobs


@pytest.mark.slow
@given(backlogged())
@settings(PROPERTY, max_examples=15)
def test_callers_get_their_shares(drawn):
    """Beside a fluid that flows to all at once by weight: nobody is further off than one call of each."""
    weights, jobs = drawn
    _, ticks = ran(jobs, Costs(), ALONE)
    owner, size = {one.id: one.caller for one in jobs}, {one.id: one.tokens for one in jobs}
    owed = {name: sum(one.calls * one.tokens for one in jobs if one.caller == name) for name in weights}
    got: dict[str, float] = defaultdict(float)
    whole = sum(weights.values())
    most = max(size.values())
    for _, ended, tick in ticks:
        for call in tick.calls:
            got[owner[call[0]]] += size[call[0]]
        # As long as the fluid has filled nobody up, it flows at one rate to each.
        if any(ended * weight / whole >= owed[name] - most for name, weight in weights.items()):
            break
        for name, weight in weights.items():
            off = most * weight * sum(1 / other for other in weights.values()) + most
            assert abs(got[name] - ended * weight / whole) <= off


def test_a_flood_of_little_weight_leaves_others_most_of_the_time():
    """A low flood beside jobs of the same key at normal priority: a fifth of the time is the flood's."""
    flood = [job(f"low{i}", 5, caller="a\nlow", weight=0.25) for i in range(40)]
    others = [job(f"n{i}", 5, arrived=5.0 * i, caller="a") for i in range(8)]
    told, ticks = ran([*flood, *others], Costs(), ALONE)
    last = max(told[one.id].end for one in others)
    low = sum(1 for _, ended, tick in ticks for call in tick.calls if ended <= last and call[0].startswith("low"))
    assert low / last <= 0.3
    assert last <= 8 * 5 / 0.8 + 5
    even, _ = ran([*(replace(one, weight=1.0) for one in flood), *others], Costs(), ALONE)
    assert max(even[one.id].end for one in others) > 1.3 * last, "the weight is what does it"


def test_who_comes_back_has_saved_nothing_up_and_whoever_went_ahead_pays():
    accounts = Accounts().present({"a"}).charged({"a": 100.0})
    accounts = accounts.present({"a", "b"})
    assert accounts.of("b") == 0.0  # a was there alone: b was never served
    accounts = accounts.charged({"b": 30.0}).present({"b"}).present({"b", "c"})
    assert (accounts.of("a"), accounts.of("b"), accounts.of("c")) == (100.0, 30.0, 30.0)


def earliest_deadline_first(jobs) -> bool:
    """Whether all deadlines are kept, second by second, by the earliest one first; calls are of one second here."""
    left, at = {one.id: one.calls for one in jobs}, 0
    while any(left.values()):
        there = [one for one in jobs if one.arrived <= at and left[one.id]]
        if there:
            left[min(there, key=lambda one: (one.deadline, one.arrived, one.id)).id] -= 1
        at += 1
        if any(left[one.id] and one.deadline <= at for one in jobs):
            return False
    return True


@pytest.mark.slow
@given(traces(deadlines=True, most=9))
@settings(PROPERTY, max_examples=150)
def test_one_callers_deadlines_are_kept_whenever_they_can_be(jobs):
    jobs = [replace(one, tokens=1.0, shape=1.0) for one in jobs]
    told, _ = ran(jobs, Costs(), replace(ALONE, patience_s=math.inf))
    if earliest_deadline_first(jobs):
        assert all(told[one.id].drawn and told[one.id].end <= one.deadline + 1e-6 for one in jobs)


@given(traces(deadlines=True, callers="abc"), st.randoms(use_true_random=False))
@PROPERTY
def test_equal_inputs_give_an_equal_plan(jobs, random):
    rules, costs = Rules(tick_s=4.0), Costs(fixed=1.0)
    accounts = Accounts().present({"a", "b", "c"})
    once = plan(jobs, costs, rules, accounts, 21.0)
    shuffled = random.sample(jobs, len(jobs))
    assert plan(shuffled, costs, rules, Accounts(dict(reversed(accounts.got.items()))), 21.0) == once


def test_one_that_came_along_to_its_end_need_not_wait_for_its_callers_turn():
    jobs = [job("a", 9, calls_done=1), *(job(f"b{i}", 4, calls_done=4, caller="rider") for i in range(2))]
    accounts = Accounts().present({"", "rider"}).charged({"rider": 9.0})
    told = [plan(jobs, Costs(row=1.0, end=end), Rules(), accounts, 0.0) for end in (0.5, 1.5)]
    assert [(tick.calls, tick.end) for tick in told] == [((("a",),), ("b0",)), ((("a",),), ())]
    assert plan([*jobs, job("c", 4, calls_done=4)], Costs(row=1.0, end=0.5), Rules(), accounts, 0.0).end == ("c",)


def test_memory_bounds_the_active_jobs_and_the_largest_gets_its_turn():
    held = {"a": 6.0, "b": 6.0, "c": 1.0}
    jobs = [job("a", 3, calls_done=1), job("b", 3, caller="other"), job("c", 1, caller="other", arrived=90.0)]
    accounts = Accounts().present({"", "other"}).charged({"": 1.0})  # it is the other's turn
    tick = plan(jobs, Costs(held=held), Rules(memory_bytes=10.0), accounts, 0.0)
    assert tick.calls == (("a",),)
    assert not tick.start  # b waits for its memory, and c does not take it away
    assert one_plan(jobs[1:], Costs(held=held), memory_bytes=5.0).start == ("b",)  # alone, whatever it needs


def test_late_and_unwanted_jobs_are_aborted():
    jobs = [job("late", 3, deadline=-0.1, calls_done=1), job("gone", 3, unwanted=True), job("good", 1)]
    tick = one_plan(jobs, Costs())
    assert (tick.abort, tick.calls) == (("gone", "late"), (("good",),))


def test_a_hopeless_job_spoils_nobody_elses_deadline():
    jobs = [job("hopeless", 50, deadline=10.0), job("b", 5, deadline=11.0), job("c", 6, deadline=12.0)]
    told, _ = ran(jobs, Costs(), ALONE)
    assert [told[name].drawn for name in ("hopeless", "b", "c")] == [False, True, True]


def test_fifo_draws_one_after_the_other():
    jobs = [job(f"j{i}", 9 - i, arrived=0.1 * i, joins="k", caller="ab"[i % 2]) for i in range(6)]
    told, ticks = ran(jobs, Costs(fixed=1.0, start=0.5, end=0.5), Rules(scheduling="fifo"))
    assert [each for _, _, tick in ticks for each in tick.end] == [one.id for one in jobs]
    assert all(len(call) == 1 for _, _, tick in ticks for call in tick.calls)
    starts = [told[one.id].start for one in jobs]
    assert starts[1:] == pytest.approx([told[one.id].end for one in jobs[:-1]])


@pytest.mark.parametrize("caller", ["", "other"])
@pytest.mark.parametrize("longs", [1, 20])
def test_a_short_job_under_long_ones_takes_at_most_three_times_as_long(caller, longs):
    costs = Costs(fixed=0.02, row=0.08, start=0.1, end=0.1)
    long = [job(f"long{i}", 50, tokens=4.0, arrived=0.0, joins="k") for i in range(longs)]
    short = job("short", 20, arrived=7.3, joins="k", caller=caller)
    alone = 0.1 + 20 * 0.1 + 0.1
    told, _ = ran([*long, short], costs, Rules())
    assert told["short"].end - 7.3 <= 3 * alone
    told, _ = ran([*long, short], costs, Rules(scheduling="fifo"))
    assert told["short"].end - 7.3 > 3 * alone


@pytest.mark.slow
@pytest.mark.parametrize("joins", ["k", None])
@pytest.mark.parametrize("allowed_s", [30.0, math.inf])
def test_a_flood_does_not_drown_another_caller(joins, allowed_s):
    costs = Costs(fixed=0.02, row=0.08, start=0.1, end=0.1)
    flood = [job(f"f{i}", 20, arrived=0.05 * i, joins=joins, caller="flood") for i in range(100)]
    flood = [replace(each, deadline=each.arrived + allowed_s) for each in flood]
    calm = [job(f"c{i}", 20, arrived=4.0 + 8.0 * i, joins=joins, caller="calm") for i in range(10)]
    alone = 0.1 + 20 * 0.1 + 0.1
    told, _ = ran([*flood, *calm], costs, Rules())
    took = [told[each.id].end - each.arrived for each in calm]
    assert statistics.quantiles(took, n=20)[-1] <= 3 * alone


def test_rules_and_ids_that_cannot_work_are_refused():
    for wrong in ({"max_rows": 0}, {"ageing": -1}, {"max_stretch": 0.5}, {"tolerance": 1.0}, {"decoders": 0}):
        with pytest.raises(ValueError, match="must"):
            Rules(**wrong)
    with pytest.raises(ValueError, match="ids must be unique"):
        one_plan([job("a", 1), job("a", 2)], Costs())
