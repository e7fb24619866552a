"""Costs of calls, learned from a machine whose costs are written down here."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cache_core import DBCacheOptions, FBCacheOptions, NoCacheOptions
from raycache.gang.call_costs import LearnedCallCosts
from raycache.gang.costs import Costs, Work
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.gang.scheduler import left_s, plan
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput
from raycache.size import Size


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


def test_each_method_holds_what_it_was_seen_to_hold():
    costs = LearnedCallCosts()
    small, large, new = (replace(job("a", 1, 4608.0), joins=name) for name in ("dual", "prune", "new"))
    assert costs.bytes_of(small) == 0, "nothing is known"
    for _ in range(2):  # twice: from then on it bounds what is told
        costs.held(small, 30_000_000)
        costs.held(large, 1_600_000_000)
    assert costs.bytes_of(small) == pytest.approx(3e7)
    assert costs.bytes_of(replace(large, rows=2)) == pytest.approx(3.2e9, rel=0.01)
    assert costs.bytes_of(new) == pytest.approx(1.6e9), "as the largest known"


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


FBCACHE = FBCacheOptions(warmup_steps=4)


@pytest.fixture
def drawn() -> Costs:
    """Costs of whole jobs, some of them with time between them."""
    costs = Costs()
    costs.meet(Capabilities("noise", 19, 4, 128, "FluxPipeline", 16))
    for side, images, cache in ((512, 1, FBCACHE), (512, 2, FBCACHE), (1024, 1, NoCacheOptions())):
        size = side * side * images / 1e6
        report = {"totals": {"computed_block_fraction": [0.6 if cache is FBCACHE else 1.0] * images}}
        output = JobOutput(np.zeros((images, 1, 1, 3), np.uint8), report, 0.3, 1.0 + 9 * size, 0.1 + size)
        for _ in range(3):
            costs.learn(Work(Size(side, side), images, 20, cache), output, wall_s=1.7 + 10 * size)
    return costs


def state(costs: Costs, work: Work) -> JobState:
    return costs.job_state("j", work, arrived=1.0, deadline=9.0, caller="key")


@pytest.mark.slow
@pytest.mark.parametrize("previews", [0, 3])
@pytest.mark.parametrize("images", [1, 2, 4])
@pytest.mark.parametrize("cache", [NoCacheOptions(), FBCACHE, DBCacheOptions()], ids=lambda cache: cache.type)
def test_a_job_alone_costs_the_scheduler_what_it_costs(drawn: Costs, cache, images: int, previews: int):
    work = Work(Size(768, 512), images, 28, cache, previews=previews)
    job = state(drawn, work)
    assert left_s(job, drawn) == pytest.approx(drawn.seconds(work))
    assert left_s(replace(job, calls_done=10), drawn) == pytest.approx(drawn.left_s(work, 10))
    assert (job.arrived, job.deadline, job.caller, job.rows, job.calls) == (1.0, 9.0, "key", images, 28)
    assert job.tokens == 48 * 32 + 128


def test_rows_of_two_jobs_cost_what_one_job_with_them_does(drawn: Costs):
    one, two = (state(drawn, Work(Size(512, 512), images, 20, FBCACHE)) for images in (1, 2))
    assert drawn.call_s([one, one]) == pytest.approx(drawn.call_s([two]))
    assert drawn.call_s([one]) < drawn.call_s([two]) < 2 * drawn.call_s([one])


def test_what_is_learned_later_counts(drawn: Costs):
    job = state(drawn, Work(Size(512, 512), 1, 20, FBCACHE))
    before = drawn.call_s([job])
    for _ in range(5):
        drawn.called([job], 3 * before)
    assert drawn.call_s([job]) == pytest.approx(3 * before, rel=0.1)


def test_which_jobs_may_join(drawn: Costs):
    """Thresholds and previews are each job's own; the method, its blocks, and the size are not."""

    def kind(cache, size: int = 512, **more) -> tuple:
        job = state(drawn, Work(Size(size, size), 1, 20, cache, **more))
        assert hash(job.joins)
        return job.shape, job.joins

    looser = FBCACHE.model_copy(update={"residual_diff_threshold": 0.3})
    assert kind(FBCACHE) == kind(looser, previews=2) == kind(looser.as_dbcache())
    kinds = [kind(FBCACHE), kind(NoCacheOptions()), kind(DBCacheOptions()), kind(DBCacheOptions(Fn_compute_blocks=4))]
    assert len({*kinds, kind(FBCACHE, 1024)}) == 5
    nobodys = state(drawn, Work(Size(512, 512), 2, 20, None))
    assert nobodys.joins is None


def test_nothing_is_known_of_costs_at_first():
    job = state(Costs(), Work(Size(512, 512), 1, 20, FBCACHE))
    assert left_s(job, Costs()) == 0.0
    assert math.isinf(Costs().max_rows(job))
