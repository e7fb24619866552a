"""Whose transformer calls become one, and what that must not cost anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from raycache.gang.schedule import JobState, Rules
from tests.helpers.plain_costs import PlainCosts as Costs
from tests.helpers.plain_costs import plain_job as job
from tests.helpers.schedules import PROPERTY, one_plan, ran, traces


@given(traces(callers="abc"), st.integers(1, 8))
@PROPERTY
def test_calls_join_only_on_equal_keys(jobs, most_rows):
    by_id = {one.id: one for one in jobs}
    _, ticks = ran(jobs, Costs(fixed=3.0), Rules(max_rows=most_rows, max_stretch=100))
    for _, _, tick in ticks:
        for call in tick.calls:
            assert len(set(call)) == len(call)
            assert len(call) == 1 or len({(by_id[each].shape, by_id[each].joins) for each in call}) == 1
            assert len(call) == 1 or by_id[call[0]].joins is not None


def test_calls_join_only_where_that_is_cheaper():
    pair = [job("a", 4, joins="k"), job("b", 4, joins="k")]
    assert one_plan(pair, Costs(fixed=1.0)).calls == (("a", "b"),)
    assert one_plan(pair, Costs(fixed=0.0)).calls == (("a",),)
    assert one_plan(pair, Costs(fixed=1.0, limit=1)).calls == (("a",),)
    assert one_plan(pair, Costs(fixed=1.0), max_stretch=1.2).calls == (("a",),)
    assert one_plan([replace(each, rows=3) for each in pair], Costs(fixed=1.0), max_rows=5).calls == (("a",),)


def test_a_call_that_reuses_much_may_be_joined_by_one_that_does_not():
    """0.3 and 1 s alone, 1.18 s together: much longer than the first, but less than one after the other."""

    class Shared(Costs):
        def call_s(self, jobs: Sequence[JobState]) -> float:
            return 0.4 * max(each.share for each in jobs) + 0.6 * sum(each.share for each in jobs)

    pair = [job("a", 4, joins="k", share=0.3), job("b", 9, joins="k", calls_done=1)]
    assert one_plan(pair, Shared()).calls == (("a", "b"),)
    assert one_plan(pair, Shared(), max_stretch=1.1).calls == (("a",),)


def test_a_call_does_not_grow_so_much_that_a_deadline_breaks():
    jobs = [job("a", 2, joins="k", deadline=4.0), *(job(f"b{i}", 9, joins="k") for i in range(5))]
    calls = one_plan(jobs, Costs(fixed=1.0, row=1.0), max_stretch=9, min_gain=0).calls
    assert calls == (("a",),)
    jobs[0] = replace(jobs[0], deadline=7.0)
    assert len(one_plan(jobs, Costs(fixed=1.0, row=1.0), max_stretch=9, min_gain=0).calls[0]) == 4


def test_jobs_that_come_along_leave_the_last_place_free():
    jobs = [job(f"long{i}", 50, joins="k") for i in range(5)]
    costs = Costs(fixed=1.0, row=0.01)
    tick = one_plan(jobs, costs, max_active=3)
    assert tick.start == ("long0", "long1")
    jobs = [replace(one, calls_done=1 if one.id in tick.start else None) for one in jobs]
    assert one_plan([*jobs, job("short", 2)], costs, max_active=3).start == ("short",)
    assert not one_plan(jobs, costs, max_active=3).start
