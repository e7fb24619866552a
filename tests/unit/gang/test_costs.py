"""Predicted seconds against a simulation of ranks that is no sum of terms; see `simulated_ranks.py`."""

from __future__ import annotations

import itertools
import math
import random
from statistics import median

import numpy as np
import pytest

from cache_core import DBCacheOptions, FBCacheOptions, ForecastCacheOptions, NoCacheOptions, ScheduleCacheOptions
from cache_core.options import DBPruneOptions
from raycache.gang.costs import Costs, Work
from raycache.gang.shares import Shares
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput, stalls
from raycache.size import Size
from tests.helpers.simulated_ranks import MACHINES, Ranks

NONE = NoCacheOptions()
DBCACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.08)
CHANGED = DBCACHE.model_copy(update={"residual_diff_threshold": 0.12, "warmup_steps": 3})
FBCACHE = FBCacheOptions(warmup_steps=4)
#: The declared size, what the probe adds, and what users ask for.
SIZES = {
    "four GPUs": ((1024, 1024), (64, 64), [(256, 256), (512, 512), (768, 768), (1536, 1024), (2048, 2048)]),
    "a tiny model": ((64, 64), (256, 256), [(96, 64), (128, 128), (256, 256), (512, 512)]),
    "a CPU": ((128, 128), (256, 256), [(64, 64), (256, 256), (384, 256), (512, 512)]),
}


class Learned:
    """Costs that ranks of a kind have taught."""

    def __init__(self, name: str) -> None:
        machine = MACHINES[name]
        self.declared, self.probe, others = SIZES[name]
        self.ranks, self.costs = Ranks(machine), Costs()
        self.costs.meet(Capabilities("noise", machine.blocks, 4, machine.text, "FluxPipeline", 16))
        self.asked = list(itertools.product([self.declared, *others], (1, 4), (4, 28, 50)))
        self.draw(self.declared, 1, 4, DBCACHE, cold=True)
        self.draw(self.probe, 1, 2, NONE, cold=True)

    def draw(self, size, images, steps, options, cold=False) -> None:
        drawn = self.ranks.draw(size, images, steps, options, cold)
        self.costs.learn(Work(Size(*size), images, steps, options), drawn, cold=cold)

    def errors(self, *options: object) -> list[float]:
        """Factors by which predictions are off, least first."""
        factors = []
        for (size, images, steps), each in itertools.product(self.asked, options):
            told = self.costs.seconds(Work(Size(*size), images, steps, each))
            factors.append(math.exp(abs(math.log(told / self.ranks.true_s(size, images, steps, each)))))
        return sorted(factors)


@pytest.fixture(params=MACHINES)
def learned(request: pytest.FixtureRequest) -> Learned:
    return Learned(request.param)


@pytest.mark.slow
def test_the_warm_up_alone_predicts_every_size(learned: Learned):
    """Its draws take 1.4 times as long as later ones, and that cannot be known yet."""
    assert learned.errors(NONE)[-1] < 2.0
    assert not learned.costs.fastest(Work(Size(*learned.declared), 1, 4, DBCACHE)), "no job has been finished"


@pytest.mark.slow
def test_one_job_teaches_the_others(learned: Learned):
    learned.draw(learned.declared, 1, 28, DBCACHE)
    errors = learned.errors(NONE, DBCACHE)
    assert median(errors) < 1.5
    assert errors[-1] < 2.5


@pytest.mark.slow
def test_a_dozen_jobs_make_it_exact(learned: Learned):
    luck = random.Random(1)
    for _ in range(12):
        learned.draw(*luck.choice(learned.asked), luck.choice([NONE, DBCACHE, FBCACHE]))
    errors = learned.errors(NONE, DBCACHE, FBCACHE)
    assert median(errors) < 1.2
    assert errors[int(0.9 * len(errors))] < 1.4
    assert errors[-1] < 2.0
    changed = learned.errors(CHANGED)
    assert median(changed) < 2.0, "options that nobody has used yet"
    assert changed[-1] < 3.0


def test_more_work_is_never_less_time(learned: Learned):
    luck = random.Random(2)
    for _ in range(25):
        learned.draw(*luck.choice(learned.asked), luck.choice([NONE, DBCACHE]))
    seconds = learned.costs.seconds
    for (width, height), images, steps in learned.asked:
        one = seconds(Work(Size(width, height), images, steps, NONE))
        assert seconds(Work(Size(width + 64, height), images, steps, NONE)) >= one
        assert seconds(Work(Size(width, height), images + 1, steps, NONE)) >= one
        assert seconds(Work(Size(width, height), images, steps + 1, NONE)) >= one
        assert seconds(Work(Size(width, height), images, steps, NONE, previews=1)) >= one


def output(seconds: float, report: dict | None = None) -> JobOutput:
    return JobOutput(np.zeros((1, 1, 1, 3), np.uint8), report, 0.1 * seconds, 0.8 * seconds, 0.1 * seconds)


def test_nothing_is_known_at_first():
    costs, work = Costs(), Work(Size(128, 128), 1, 10, NONE)
    assert not costs.known
    assert costs.seconds(work) is costs.left_s(work, 3) is costs.phase_s(work, "decode") is None


def test_one_kind_alone_is_predicted_as_it_was():
    for seconds in (0.05, 2.0, 500.0):
        costs, work = Costs(), Work(Size(128, 128), 1, 10, NONE)
        costs.learn(work, output(seconds))
        assert costs.seconds(work) == pytest.approx(seconds, rel=1e-3)
        assert costs.left_s(work, 5) == pytest.approx(0.5 * seconds, rel=1e-3)


def test_it_follows_a_change_and_no_single_outlier():
    costs, work = Costs(), Work(Size(128, 128), 1, 10, NONE)
    for seconds in (1.0, 1.0, 1.0, 9.0):
        costs.learn(work, output(seconds))
    assert costs.seconds(work) == pytest.approx(1.0, rel=0.01)
    for _ in range(5):
        costs.learn(work, output(2.0))
    assert costs.seconds(work) == pytest.approx(2.0, rel=0.01)
    assert costs.fastest(work) == pytest.approx(1.0)


def test_what_lies_between_jobs_counts():
    costs, work = Costs(), Work(Size(128, 128), 1, 10, NONE)
    for _ in range(20):
        costs.learn(work, output(1.0), wall_s=1.5)
    assert costs.seconds(work) == pytest.approx(1.5, rel=0.01)
    assert costs.error < 0.01


def test_stalls_are_those_of_single_steps():
    assert stalls([9.0, 1.0, 1.0, 1.0]) == 7.0
    assert stalls([1.0, 1.0, 5.0, 1.0]) == 3.0
    assert stalls([1.2, 0.9, 1.1]) == stalls([3.0]) == stalls([]) == 0.0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("raycache.gang.costs._REMEMBERED", 20)
    monkeypatch.setattr("raycache.gang.shares._REMEMBERED", 30)
    costs = Costs()
    for steps in range(1, 80):
        report = {"totals": {"computed_block_fraction": [0.5]}}
        costs.learn(Work(Size(128, 128), 1, steps, DBCACHE), output(1.0, report))
    assert [len(costs._finished), len(costs._shares._seen), len(costs._step._kinds)] == [20, 30, 64]


def test_the_share_of_a_schedule_is_known_and_needs_no_job_to_learn_it():
    """Of 12 steps the first 4, and every fourth of the others; in the rest the first two of 20 blocks."""
    shares = Shares()
    shares.num_blocks = 20
    schedule = ScheduleCacheOptions(warmup_steps=4, compute_every=4, Fn_compute_blocks=2)
    assert shares.expected(schedule, 12) == pytest.approx((6 * 20 + 6 * 2) / (12 * 20))
    shares.learn(schedule, 12, 0.9)
    assert shares.expected(schedule, 12) == pytest.approx(0.55)
    assert shares.expected(schedule, 4) == 1.0


JUDGING = [DBCACHE, FBCACHE, DBPruneOptions(warmup_steps=2), ForecastCacheOptions(warmup_steps=2)]


@pytest.mark.parametrize("options", JUDGING, ids=lambda o: o.type)
def test_a_share_follows_from_the_options(options):
    shares = Shares()
    shares.num_blocks = 20
    assert shares.expected(options, options.warmup_steps) == 1.0, "nothing is saved in the warm-up"
    assert shares.expected(options.model_copy(update={"residual_diff_threshold": 0.0}), 28) == 1.0
    shares.learn(options, 28, 0.9)
    assert shares.expected(options, 28) == pytest.approx(0.9)
    for looser in (0.05, 0.08, 0.1, 0.2, 5.0):
        less, more = (options.model_copy(update={"residual_diff_threshold": at}) for at in (looser, 1.1 * looser))
        assert shares.expected(more, 28) <= shares.expected(less, 28)
    at_most = "max_pruned_steps" if options.type == "DBPrune" else "max_cached_steps"
    assert shares.expected(options.model_copy(update={at_most: 1}), 28) > 0.95
