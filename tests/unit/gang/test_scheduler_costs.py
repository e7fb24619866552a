"""Costs of calls, learned from a machine whose costs are written down here."""

from __future__ import annotations

import pytest

from raycache.gang.call_costs import LearnedCallCosts
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.gang.scheduler import plan


def job(name: str, rows: int = 1, tokens: float = 1024.0, **more) -> JobState:
    return JobState(id=name, arrived=0.0, shape=tokens, calls=4, tokens=tokens, rows=rows, joins="k", **more)


def machine_s(rows: int, tokens: float, share: float = 1.0) -> float:
    return 0.01 + 0.02 * share + 2e-5 * share * rows * tokens + 1e-9 * share * rows * tokens**2


@pytest.fixture
def costs() -> LearnedCallCosts:
    learned = LearnedCallCosts()
    for tokens in (1024.0, 4608.0):
        for rows in (1, 2, 4):
            for share in (0.3, 1.0):
                one = job("a", rows, tokens, share=share)
                for _ in range(2):
                    learned.called([one], machine_s(rows, tokens, share))
        learned.ended(job("a", 1, tokens), 1e-4 * tokens)
        learned.held(job("a", 1, tokens), 1e6 + 100 * tokens)
    learned.started(job("a"), 0.2)
    return learned


@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("tokens", [1024.0, 2048.0, 4608.0])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_call_never_seen_is_predicted(costs, rows, tokens, share):
    jobs = [job(str(i), 1, tokens, share=share) for i in range(rows)]
    assert costs.call_s(jobs) == pytest.approx(machine_s(rows, tokens, share), rel=0.15)


def test_encoding_decoding_and_memory_are_predicted(costs):
    assert costs.start_s(job("b")) == pytest.approx(0.2)
    assert costs.end_s(job("b", 1, 4608.0)) == pytest.approx(0.4608, rel=0.1)
    assert costs.bytes_of(job("b", 1, 4608.0)) == pytest.approx(1e6 + 460800, rel=0.1)


def test_new_measurements_change_what_is_told():
    costs = LearnedCallCosts()
    costs.called([job("b")], 0.05)
    assert costs.call_s([job("b")]) == pytest.approx(0.05)
    for _ in range(5):
        costs.called([job("b")], 0.5)
    assert costs.call_s([job("b")]) == pytest.approx(0.5)


def test_calls_that_ran_out_of_memory_get_half_the_rows(costs):
    assert costs.max_rows(job("b")) > 100
    costs.out_of_memory([job(str(i)) for i in range(8)])
    assert (costs.max_rows(job("b")), costs.max_rows(job("b", tokens=2048.0))) == (4, 2)
    assert costs.max_rows(job("b", tokens=65536.0)) == 1
    costs.out_of_memory([job(str(i)) for i in range(16)])
    assert costs.max_rows(job("b")) == 4  # a larger one that does not fit either says nothing new
    jobs = [job(str(i)) for i in range(8)]
    rules = Rules(max_stretch=100.0)
    assert len(plan(jobs, costs, rules, Accounts(), 0.0).calls[0]) == 4


def test_before_anything_was_learned_the_first_comes_first_and_alone():
    jobs = [job("b"), JobState(id="a", arrived=1.0, shape=1, calls=1, tokens=1.0, joins="k")]
    tick = plan(jobs, LearnedCallCosts(), Rules(), Accounts(), 2.0)
    assert tick.calls == (("b",),)
