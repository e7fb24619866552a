"""Real gloo ranks decide together: with the model split over them, under attack, when one of them goes wrong.

Starting four processes costs far more than what they do here, so each group of ranks runs all its cases in one go and
brings home the records; the tests look at those.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.core_cases import ABORTED_STEPS, JOBS, OPTIONS, on_four, on_two
from tests.helpers.joined import TOGETHER
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_flux import Job, decisions, differences, draw, draw_cached, gap, tiny_flux

#: Half a minute on an idle machine; the rest is for one where everything else runs at the same time.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return run_ranks(4, on_four, timeout=360)


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_ranks(2, on_two, timeout=120)


def test_uncached_four_ranks_draw_what_one_draws(four):
    alone = draw(tiny_flux(), JOBS["three images"])
    for rank in four:
        assert gap(rank["together"]["uncached"], alone) <= 1e-5


@pytest.mark.parametrize("images", JOBS)
@pytest.mark.parametrize("method", OPTIONS)
def test_four_ranks_decide_and_draw_as_one(four, method, images):
    outputs, report = draw_cached(tiny_flux(), OPTIONS[method], JOBS[images])
    for rank in four:
        together, theirs = rank["together"][method, images]
        for image in range(len(JOBS[images].seeds)):
            assert decisions(theirs, image) == decisions(report, image)
            for mine, alone in zip(differences(theirs, image), differences(report, image), strict=True):
                assert mine == pytest.approx(alone, abs=1e-5)
        assert gap(together, outputs) <= 1e-5
        assert theirs.to_dict(detail=True) == four[0]["together"][method, images][1].to_dict(detail=True)
    kinds = {d[0] or bool(d[2]) for image in range(len(JOBS[images].seeds)) for d in decisions(report, image)}
    assert kinds == ({False} if method == "none" else {False, True})


def test_one_all_reduce_per_decision(four):
    """DBCache: one in every step, warm-up too. DBPrune: one per compared block, one look in a step without."""
    for images in JOBS:
        for method in ("none", "DBCache", "FBCache", "ForecastCache", "BudgetCache", "ScheduleCache"):
            report = four[0]["together"][method, images][1]
            assert report.collectives == len(report.steps)
        for method in OPTIONS:
            report = four[0]["together"][method, images][1]
            looks = sum(
                max(1, len({site for image in step.images for site in image.differences})) for step in report.steps
            )
            partial = method.startswith("DBCache, partial")
            assert report.collectives == (looks if not partial else looks + _steps_that_only_bn_asked(report)), method


def _steps_that_only_bn_asked(report: Any) -> int:
    """Steps in which Bn blocks were compared but Fn, where the one look always is, was not."""
    return sum(
        bool(sites := {site for image in step.images for site in image.differences}) and 0 not in sites
        for step in report.steps
    )


def _assert_all_ranks_decided_alike(ranks: list[list[dict[str, Any]]]) -> None:
    for records in zip(*ranks, strict=True):
        assert all(record == records[0] for record in records)


def test_under_attack_all_ranks_decide_alike(four):
    """Every rank's own statistic is off by a random factor, so that on its own it would decide otherwise."""
    ranks = [rank["attacks"]["together"] for rank in four]
    assert len(ranks[0]) >= 200
    _assert_all_ranks_decided_alike(ranks)
    assert not any(record["parted"] for record in ranks[0])
    seen = [image for record in ranks[0] for step in record["steps"] for image in step["images"]]
    assert {image["reason"] for image in seen} == {"warmup", "first", "limit", "threshold", "below"}
    assert 0.1 < sum(image["reason"] == "below" for image in seen) / len(seen) < 0.9


def test_the_attack_parts_ranks_that_do_not_reduce(four):
    """The proof that the test above can fail: the same attack with the all-reduce taken out."""
    ranks = [rank["attacks"]["alone"] for rank in four]
    with pytest.raises(AssertionError):
        _assert_all_ranks_decided_alike(ranks)
    parted = 0
    for records in zip(*ranks, strict=True):
        flags = [[[(i["cached"], i["pruned_blocks"]) for i in s["images"]] for s in r["steps"]] for r in records]
        parted += any(flag != flags[0] for flag in flags)
    assert parted > len(ranks[0]) / 2


def test_the_checksum_sees_parted_ranks_at_once(four):
    """Sums local, checksum reduced: wherever decisions part, all ranks stop at the next reduction. They may be a step
    apart by then (one still has Bn blocks to ask for, the others do not), but never a second decision."""
    ranks = [rank["attacks"]["watched"] for rank in four]
    stopped = 0
    for records in zip(*ranks, strict=True):
        assert len({record["parted"] is None for record in records}) == 1
        assert len({record["collectives"] for record in records}) == 1
        flags = [[[(i["cached"], i["pruned_blocks"]) for i in s["images"]] for s in r["steps"]] for r in records]
        # What parts in the very last decision of a job has no later one to show at, and does no harm.
        common = min(map(len, flags)) - 1
        assert all(flag[:common] == flags[0][:common] for flag in flags)
        stopped += records[0]["parted"] is not None
    assert stopped > len(ranks[0]) / 2


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("method", ["none", "DBCache", "DBPrune"])
def test_an_abort_on_any_rank_at_any_step_ends_all_at_that_step(request, method, size):
    """Cached steps and computed ones; the job after it is bit-equal to one before."""
    ranks = request.getfixturevalue({2: "two", 4: "four"}[size])
    records = [rank["aborts"][method] for rank in ranks]
    for record in records:
        assert [(r[0], r[1], r[2]) for r in record["raised"]] == [
            (step, "default", step) for step in range(ABORTED_STEPS)
        ]
        assert record["raised"] == records[0]["raised"]
        assert record["fresh"]
        assert set(record["cached"]) == ({False} if method == "none" else {False, True})


@pytest.mark.parametrize("method", ["none", "DBCache", "DBPrune"])
def test_a_rank_with_another_history_is_found_at_the_next_decision(four, method):
    for rank in four:
        steps, collectives, words = rank["parted"][method]
        assert steps == 3  # the history was changed before step 3, and step 3's first decision saw it
        assert collectives == four[0]["parted"][method][1]
        assert "not at the same decision" in words
        assert rank["parted"][method, "afterwards"] == 6


def test_a_rank_with_other_options_is_found_at_the_first_look(four):
    assert [rank["parted"]["options"] for rank in four] == [0, 0, 0, 0]


@pytest.mark.parametrize("method", ["DBCache", "DBPrune"])
def test_one_nan_on_one_rank_makes_all_ranks_compute(four, method):
    reports = [rank["not finite"][method] for rank in four]
    assert all(report == reports[0] for report in reports)
    reasons = [step["images"][0]["reason"] for step in reports[0]["steps"]]
    assert reasons == ["warmup", "warmup", "below", "non_finite", "first", "below", "below"]
    assert reports[0]["totals"]["non_finite"] > 0


@pytest.mark.parametrize("method", ["DBCache", "DBPrune, dynamic"])
def test_two_groups_in_one_world_know_nothing_of_each_other(four, method):
    """Other seeds, another number of steps: with one reduction over the world they would mix, or wait for ever."""
    for rank, result in enumerate(four):
        job = Job(seeds=(4,), steps=4) if rank < 2 else Job(seeds=(5,), steps=7)
        outputs, report = draw_cached(tiny_flux(), OPTIONS[method], job)
        together, theirs = result["two groups"][method]
        assert decisions(theirs) == decisions(report)
        assert gap(together, outputs) <= 1e-5


@pytest.mark.parametrize("method", ["DBCache, partial Bn, forecast", "DBPrune"])
def test_a_batch_split_over_two_groups_of_two(four, method):
    """Data and context parallel at once: each group decides for its own image."""
    job, seen = Job(seeds=(1, 2), steps=7), []
    outputs, report = draw_cached(tiny_flux(), OPTIONS[method], job)
    for rank, result in enumerate(four):
        together, theirs = result["two groups"]["split", method]
        assert decisions(theirs) == decisions(report, rank // 2)
        assert gap(together, outputs) <= 1e-5
        seen.append(decisions(theirs))
    assert seen[0] != seen[2]


def test_the_default_dtype_does_not_round_the_checksum(four):
    for rank in four:
        assert [d[1] for d in rank["bfloat16"]] == ["warmup", "below", "below", "below"]


@pytest.mark.parametrize("method", TOGETHER)
def test_jobs_in_joined_calls_decide_as_alone_on_one_rank(two, method):
    """Split over two ranks, jobs at different steps of theirs."""
    for k, (job, options) in enumerate(TOGETHER[method]):
        alone, single = draw_cached(tiny_flux(), options, job)
        for rank in two:
            outputs, report = rank["joined"][method][k]
            for image in range(len(job.seeds)):
                assert decisions(report, image) == decisions(single, image)
            assert gap(outputs, alone) <= 1e-4
    seen = {d[0] or bool(d[2]) for _, report in two[0]["joined"][method] for d in decisions(report)}
    assert seen == {True, False}


@pytest.mark.parametrize("method", TOGETHER)
def test_under_attack_joined_calls_are_decided_alike(two, method):
    one, other = (rank["joined"]["attacked", method] for rank in two)
    assert one == other
    apart = [rank["joined"]["not reduced", method] for rank in two]
    assert apart[0] != apart[1], "the attack must bite where nothing is reduced"


def test_ranks_that_join_other_jobs_are_found(two):
    """The jobs are alike but for their names: rank 0 begins with the first, rank 1 with the second."""
    for rank in two:
        assert "not at the same decision" in rank["joined"]["parted"]
