"""Jobs whose rows are dealt out to the ranks: how long that takes, and which of them come for nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.gang.deadlines import Deadlines
from raycache.gang.ending import ended_together, spread_s
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.gang.scheduler import plan
from tests.helpers.plain_costs import PlainCosts, plain_job

PROPERTY = settings(derandomize=True, deadline=None, max_examples=80)


class Decoding(PlainCosts):
    """A row of a job takes as many seconds as it has tokens, and each rank takes the next row."""

    def __init__(self, ranks: int) -> None:
        super().__init__(fixed=4.0)
        self.ranks = ranks

    def end_s(self, job: JobState) -> float:
        return math.ceil(job.rows / self.ranks) * job.tokens


@st.composite
def done(draw) -> tuple[int, list[JobState]]:
    jobs = [
        plain_job(f"j{i}", 3, float(draw(st.integers(1, 3))), rows=draw(st.integers(1, 5)), calls_done=3)
        for i in range(draw(st.integers(1, 6)))
    ]
    return draw(st.integers(1, 4)), jobs


def hands(jobs: list[JobState], ranks: int) -> float:
    """Cards in one pile, dealt out; who has the most?"""
    pile = [job.tokens for job in jobs for _ in range(job.rows)]
    return max(sum(pile[rank::ranks]) for rank in range(ranks))


@given(done())
@PROPERTY
def test_the_rank_with_most_to_do_is_waited_for(drawn):
    ranks, jobs = drawn
    assert spread_s(jobs, Decoding(ranks), ranks) == pytest.approx(hands(jobs, ranks))


@given(done())
@PROPERTY
def test_whoever_comes_along_costs_nothing(drawn):
    ranks, (first, *others) = drawn
    costs = Decoding(ranks)
    lefts = {job.id: costs.end_s(job) for job in (first, *others)}
    deadlines = Deadlines([first, *others], lefts, 0.0, math.inf)
    members, seconds = ended_together(first, others, costs, Rules(decoders=ranks), deadlines)
    assert members[0] is first
    assert seconds == hands(members, ranks) == lefts[first.id]
    if ranks == 1:
        assert members == [first]


def test_four_ranks_decode_four_images_at_once_and_two_jobs_of_two():
    jobs = [plain_job(name, 3, rows=2, calls_done=3) for name in "abc"]
    costs, accounts = Decoding(4), Accounts().present({""})
    assert plan(jobs, costs, Rules(decoders=4), accounts, 0.0).end == ("a", "b")
    assert plan(jobs, costs, Rules(decoders=4), accounts, 0.0).seconds == 1.0
    assert plan(jobs, costs, Rules(), accounts, 0.0).end == ("a",)


def test_several_that_came_along_are_let_go_beside_a_call():
    riders = [plain_job(f"r{i}", 3, calls_done=3, caller="rider") for i in range(3)]
    accounts = Accounts().present({"", "rider"}).charged({"rider": 9.0})
    tick = plan([plain_job("own", 5), *riders], Decoding(2), Rules(decoders=2), accounts, 0.0)
    assert (tick.calls, tick.end) == ((("own",),), ("r0", "r1"))


def test_a_heavier_one_does_not_come_along():
    first, heavy = plain_job("a", 3, 1.0, calls_done=3), plain_job("b", 3, 3.0, calls_done=3)
    costs, accounts = Decoding(2), Accounts().present({""})
    assert plan([first, heavy], costs, Rules(decoders=2), accounts, 0.0).end == ("a",)
    assert plan([first, replace(heavy, tokens=1.0)], costs, Rules(decoders=2), accounts, 0.0).end == ("a", "b")
