"""Sums at the edge of float32, and thresholds that move: answered as told, expected as written down by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cache_core import CacheReport, cache_session
from tests.helpers.tiny_flux import Job, draw, tiny_flux
from tests.helpers.told import answered

MODEL = tiny_flux()
INF, NAN = math.inf, math.nan
DBCACHE = {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2}
DBPRUNE = {"type": "DBPrune", "Fn_compute_blocks": 7, "Bn_compute_blocks": 0, "warmup_steps": 2}
METHODS = {"DBCache": DBCACHE, "DBPrune": DBPRUNE}
THIRD = Job(steps=4)


def _drawn(options: dict[str, Any], answers: list[tuple[float, float]], job: Job = THIRD) -> CacheReport:
    with (
        answered(lambda question, _: answers[min(question, len(answers) - 1)]),
        cache_session(MODEL, options) as report,
    ):
        draw(MODEL, job)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sums", [(INF, 1.0), (1.0, INF), (INF, INF), (NAN, 1.0), (1.0, NAN), (NAN, NAN), (0.0, INF)])
def test_a_sum_without_value_is_never_a_small_difference(method, sums):
    """A reference that overflowed makes anything look like difference 0: the image would repeat what it has."""
    report = _drawn(METHODS[method], [sums, (0.0, 1.0)])
    image = report.steps[2].images[0]
    assert (image.cached, image.reason, image.pruned_blocks) == (False, "non_finite", [])
    assert image.computed_blocks == 8
    assert {pair[0] for pair in image.differences.values()} == {None}
    assert report.non_finite == 1
    assert report.steps[3].images[0].reason == "first", "what it was compared with is forgotten"


@pytest.mark.parametrize("sums", [(INF, 1.0), (1.0, INF), (NAN, 1.0), (1.0, NAN)])
def test_a_bn_block_without_value_is_computed_and_forgotten(sums):
    options = {**DBCACHE, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,)}  # block 6 is compared
    report = _drawn(options, [(0.0, 1.0), sums, (0.0, 1.0)])
    third, fourth = (step.images[0] for step in report.steps[2:])
    assert third.cached
    assert third.differences[6][0] is None
    assert third.computed_blocks == 3
    assert list(fourth.differences) == [0]
    assert report.non_finite == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize(("ratio", "below"), [(0.0, True), (0.0625, True), (0.25, False), (4.0, False)])
def test_only_the_ratio_counts(method, scale, ratio, below):
    """Whatever the size of latents: bfloat16 models with tiny residuals are no special case."""
    options = {**METHODS[method], "residual_diff_threshold": 0.1}
    image = _drawn(options, [(ratio * scale, scale)]).steps[2].images[0]
    assert (image.cached or bool(image.pruned_blocks)) is below
    assert list(image.differences.values()) == [(pytest.approx(ratio), 0.1)]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_over_nothing_is_no_difference(method):
    report = _drawn({**METHODS[method], "residual_diff_threshold": 9.0}, [(0.0, 0.0)])
    assert report.steps[2].images[0].reason == "threshold"
    assert report.non_finite == 0


DYNAMIC = {
    "type": "DBPrune", "Fn_compute_blocks": 2, "Bn_compute_blocks": 0, "warmup_steps": 1,
    "residual_diff_threshold": 0.1, "enable_dynamic_prune_threshold": True, "max_dynamic_prune_threshold": 0.5,
    "dynamic_prune_threshold_relax_ratio": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "thresholds"),
    [
        # No difference yet: the static one. Then twice the mean of those so far.
        ((0.08, 0.2, 0.03, 0.3, 0.3, 0.3), (0.1, 0.16, 0.28, 2 * 0.31 / 3, 2 * 0.61 / 4, 2 * 0.91 / 5)),
        # Zeros say nothing of how much an image moves: the mean is of those that moved.
        ((0.0, 0.0, 0.2, 0.0, 0.0, 0.3), (0.1, 0.1, 0.1, 0.4, 0.4, 0.4)),
        # Even the smallest move counts.
        ((0.2, 1e-4, 0.9, 0.9, 0.9, 0.9), (0.1, 0.4, 2 * 0.2001 / 2, 0.1, 0.1, 0.1)),
        # Never below the static one.
        ((0.01, 0.01, 0.01, 0.01, 0.01, 0.01), (0.1,) * 6),
        # At the cap, and over it, back to the static one.
        ((0.25, 0.25, 0.9, 0.9, 0.9, 0.9), (0.1,) * 6),
        ((0.24, 0.24, 0.24, 0.24, 0.24, 0.24), (0.1, 0.48, 0.48, 0.48, 0.48, 0.48)),
    ],
)
def test_the_dynamic_threshold_by_hand(differences, thresholds):
    """Six blocks are asked in step 1; in step 2 the mean begins anew."""
    with (
        answered(lambda question, _: (differences[question % 6], 1.0)),
        cache_session(MODEL, DYNAMIC) as report,
    ):
        draw(MODEL, Job(steps=3))
    for step in report.steps[1:]:
        image = step.images[0]
        assert list(image.differences) == [2, 3, 4, 5, 6, 7]
        assert [pair[1] for pair in image.differences.values()] == pytest.approx(list(thresholds))
        pairs = zip(range(2, 8), differences, thresholds, strict=True)
        assert image.pruned_blocks == [block for block, moved, threshold in pairs if moved < threshold]


def test_steps_that_only_some_images_ask_in():
    """Limits and warm-up are of an image's own branch; an image that reached its limit asks no more, the other does."""
    options = {**DBCACHE, "max_cached_steps": 1}
    answers = {0: (True, False), 1: (True, True)}
    with (
        answered(lambda question, image: (0.0 if answers.get(question, (True, True))[image] else 9.0, 1.0)) as wire,
        cache_session(MODEL, options) as report,
    ):
        draw(MODEL, Job(seeds=(1, 2), steps=5))
    assert wire.asked == [(False, False), (False, False), (True, True), (False, True), (False, False)]
    reasons = [[image.reason for image in step.images] for step in report.steps]
    assert reasons == [["warmup"] * 2, ["warmup"] * 2, ["below", "threshold"], ["limit", "below"], ["limit"] * 2]


def test_an_image_is_not_touched_by_being_compared():
    """Sums read live activations: whatever they say, a job that reuses nothing is the uncached job, bit for bit."""
    job = Job(seeds=(1, 2), steps=4)
    expected = draw(MODEL, job)
    for options in METHODS.values():
        with answered(lambda *_: (9.0, 1.0)), cache_session(MODEL, options):
            outputs = draw(MODEL, job)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs, expected, strict=True))
