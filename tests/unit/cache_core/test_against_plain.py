"""DBPrune, and DBCache with partial Bn, beside a plain rewriting of what was published (``plain.py``)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from cache_core import parse_options
from tests.helpers.plain import draw_plainly, plain_dual, plain_prune
from tests.helpers.tiny_flux import Job, decisions, differences, draw, draw_cached, gap, tiny_flux

PRUNE: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 1,
    "warmup_steps": 2,
    "max_pruned_steps": -1,
    "residual_diff_threshold": 0.12,
    "enable_dynamic_prune_threshold": False,
    "max_dynamic_prune_threshold": None,
    "dynamic_prune_threshold_relax_ratio": 1.25,
    "residual_cache_update_interval": 1,
    "non_prune_blocks_ids": (),
}


def _prune_grid() -> list[dict[str, Any]]:
    grid = [
        {"Fn_compute_blocks": first, "Bn_compute_blocks": last, "residual_diff_threshold": threshold}
        for (first, last), threshold in itertools.product(
            [(0, 0), (1, 1), (3, 0), (0, 5), (4, 2), (2, 4), (8, 0)], (0.06, 0.1, 0.2)
        )
    ]
    grid += [
        {
            "enable_dynamic_prune_threshold": True,
            "max_dynamic_prune_threshold": cap,
            "residual_diff_threshold": threshold,
            "dynamic_prune_threshold_relax_ratio": ratio,
        }
        for cap, threshold, ratio in itertools.product((None, 0.05, 0.3), (0.06, 0.1), (1.02, 1.25, 2.0))
    ]
    grid += [
        {"max_pruned_steps": limit, "residual_cache_update_interval": interval, "warmup_steps": warmup}
        for limit, interval, warmup in itertools.product((-1, 0, 1, 3), (1, 2, 3), (0, 3))
    ]
    grid += [
        {"non_prune_blocks_ids": ids, "enable_dynamic_prune_threshold": dynamic, "Fn_compute_blocks": 0}
        for ids, dynamic in itertools.product([(0, 2, 4, 6), (1, 3, 5, 7), (3,), tuple(range(8))], (False, True))
    ]
    return [{**PRUNE, **case} for case in grid]


def test_the_plain_walk_is_flux():
    """The judge must draw what the model draws when nothing is cached."""

    def walk(step, blocks, h, e):
        for block in blocks:
            h, e = block(h, e)
        return h

    job = Job(steps=3)
    assert gap(draw_plainly(tiny_flux(), job, walk), draw(tiny_flux(), job)) == 0.0


@pytest.mark.slow
def test_dbprune_prunes_the_same_blocks_for_the_same_reasons(flux):
    patterns, thresholds = set(), set()
    for seed, options in enumerate(_prune_grid()):
        job = Job(seeds=(seed,), steps=9)
        outputs, pruned, compared = plain_prune(tiny_flux(), job, options)
        ours, report = draw_cached(flux, parse_options({"type": "DBPrune", **options}), job)
        assert [list(d[2]) for d in decisions(report)] == pruned, options
        for mine, plain in zip((step.images[0].differences for step in report.steps), compared, strict=True):
            assert list(mine) == list(plain), options
            for block in mine:
                assert mine[block] == pytest.approx(plain[block], rel=1e-5, abs=1e-6), (options, block)
        assert gap(ours, outputs) <= 1e-5, options
        patterns |= {tuple(p) for p in pruned}
        thresholds |= {round(pair[1], 4) for step in compared for pair in step.values()}
    assert len(patterns) > 30  # the grid prunes in many ways, not all or nothing
    assert len(thresholds) > 30  # and the dynamic threshold really moved


DUAL: dict[str, Any] = {
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 5,
    "warmup_steps": 1,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.3,
    "Bn_compute_blocks_ids": (0, 2),
    "non_compute_blocks_diff_threshold": 0.08,
}


def _dual_grid() -> list[dict[str, Any]]:
    grid = [
        {"Bn_compute_blocks": last, "Bn_compute_blocks_ids": ids, "non_compute_blocks_diff_threshold": threshold}
        for (last, ids), threshold in itertools.product(
            [(5, ()), (5, (0,)), (5, (4,)), (4, (1, 3)), (7, (0, 5)), (6, (2, 3))], (0.0, 0.05, 0.1, 0.2)
        )
    ]
    grid += [
        {"max_cached_steps": cached, "max_continuous_cached_steps": run, "warmup_steps": warmup}
        for cached, run, warmup in itertools.product((-1, 0, 1, 2, 4), (-1, 1), (0, 3))
    ]
    return [{**DUAL, **case} for case in grid]


@pytest.mark.slow
def test_dbcache_with_partial_bn(flux):
    reused = computed = 0
    for seed, options in enumerate(_dual_grid()):
        job = Job(seeds=(seed,), steps=10)
        outputs, cached, compared = plain_dual(tiny_flux(), job, options)
        ours, report = draw_cached(flux, parse_options({"type": "DBCache", **options}), job)
        assert [step for step, d in enumerate(decisions(report)) if d[0]] == cached, options
        for mine, plain in zip(differences(report), compared, strict=True):
            assert mine == pytest.approx(plain, rel=1e-5, abs=1e-6), options
        assert gap(ours, outputs) <= 1e-5, options
        for step in report.steps:
            bn = [pair for block, pair in step.images[0].differences.items() if block > 0]
            reused += sum(difference < threshold for difference, threshold in bn)
            computed += sum(difference >= threshold for difference, threshold in bn)
    assert reused > 50
    assert computed > 50


@pytest.mark.parametrize("limit", [1, 3])
def test_the_last_step_that_max_cached_steps_allows_is_a_cached_step_like_the_others(flux, limit):
    """Published, that step computed all its Bn blocks; nothing says why it should."""
    options = {**DUAL, "max_cached_steps": limit, "residual_diff_threshold": 0.9}
    _, report = draw_cached(flux, {"type": "DBCache", **options}, Job(steps=8))
    cached = [step for step in report.steps if step.images[0].cached]
    assert len(cached) == limit
    assert all(set(step.images[0].differences) == {0, 4, 6, 7} for step in cached)
