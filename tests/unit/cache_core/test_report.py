"""The report: exactly the public shape, and every word of it true."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cache_core import cache_session
from tests.helpers.tiny_flux import Job, draw, draw_cached

DBCACHE = {
    "type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,),
    "warmup_steps": 2, "max_cached_steps": 2, "residual_diff_threshold": 0.9,
}  # fmt: skip
DBPRUNE = {
    "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 5, "warmup_steps": 2, "max_pruned_steps": 2,
    "residual_diff_threshold": 0.9,
}  # fmt: skip


def test_dbcache(flux):
    _, report = draw_cached(flux, DBCACHE, Job(seeds=(1, 2), steps=5))
    result = report.to_dict()
    assert list(result) == ["method", "options", "steps", "totals"]
    assert result["method"] == "DBCache"
    assert result["options"] == {
        "type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 2, "warmup_steps": 2, "max_cached_steps": 2,
        "max_continuous_cached_steps": -1, "residual_diff_threshold": 0.9, "Bn_compute_blocks_ids": [1],
        "non_compute_blocks_diff_threshold": 0.08, "taylor_order": 0,
    }  # fmt: skip
    assert [(s["step"], s["branch"], len(s["images"])) for s in result["steps"]] == [
        (step, "default", 2) for step in range(5)
    ]
    for image in (0, 1):
        rows = [s["images"][image] for s in result["steps"]]
        assert all(list(row) == ["cached", "reason", "residual_diff", "pruned_blocks"] for row in rows)
        assert [row["cached"] for row in rows] == [False, False, True, True, False]
        assert [row["reason"] for row in rows] == ["warmup", "warmup", "below", "below", "limit"]
        assert [row["residual_diff"] is None for row in rows] == [True, True, False, False, True]
        assert all(row["pruned_blocks"] == [] for row in rows)
    computed = [
        1 - sum(4 + (d["differences"].get(6, [1.0])[0] < 0.08) for d in image if d["cached"]) / 40
        for image in zip(*(s["images"] for s in report.to_dict(detail=True)["steps"]), strict=True)
    ]
    assert result["totals"] == {
        "steps": 5, "cached_steps": [2, 2], "computed_block_fraction": pytest.approx(computed), "collectives": 0,
        "non_finite": 0,
    }  # fmt: skip
    assert list(result["totals"]) == ["steps", "cached_steps", "computed_block_fraction", "collectives", "non_finite"]


def test_detail_has_every_comparison_under_its_block(flux):
    """DBCache's decision stands under the last Fn block, compared Bn blocks under their own ids."""
    _, report = draw_cached(flux, DBCACHE, Job(steps=5))
    rows = [s["images"][0] for s in report.to_dict(detail=True)["steps"]]
    assert all(list(row)[-1] == "differences" for row in rows)
    assert [list(row["differences"]) for row in rows] == [[], [], [1, 6], [1, 6], []]
    for row in rows[2:4]:
        assert row["differences"][1] == [row["residual_diff"], 0.9]
        assert row["differences"][6][1] == 0.08
    _, report = draw_cached(flux, DBPRUNE, Job(steps=5))
    rows = [s["images"][0] for s in report.to_dict(detail=True)["steps"]]
    assert [list(row["differences"]) for row in rows] == [[], [], [1, 2], [1, 2], []]


def test_dbprune(flux):
    """``cached`` is false and ``residual_diff`` null, whatever was pruned; the reason is ``below`` if anything was."""
    _, report = draw_cached(flux, DBPRUNE, Job(steps=5))
    result = report.to_dict()
    rows = [s["images"][0] for s in result["steps"]]
    assert [row["reason"] for row in rows] == ["warmup", "warmup", "below", "below", "limit"]
    assert [row["pruned_blocks"] for row in rows] == [[], [], [1, 2], [1, 2], []]
    assert {row["cached"] for row in rows} == {False}
    assert {row["residual_diff"] for row in rows} == {None}
    assert result["totals"] == {
        "steps": 5, "cached_steps": [0], "computed_block_fraction": [0.9], "collectives": 0, "non_finite": 0,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({**DBCACHE, "residual_diff_threshold": 1e-6}, ["warmup", "warmup", "threshold", "threshold", "threshold"]),
        ({**DBCACHE, "residual_diff_threshold": 0.0}, ["warmup", "warmup", "threshold", "threshold", "threshold"]),
        ({**DBCACHE, "warmup_steps": 0}, ["first", "below", "below", "limit", "limit"]),
        ({**DBCACHE, "max_continuous_cached_steps": 1}, ["warmup", "warmup", "below", "limit", "below"]),
        ({**DBPRUNE, "residual_diff_threshold": 1e-6}, ["warmup", "warmup", "threshold", "threshold", "threshold"]),
        ({**DBPRUNE, "residual_diff_threshold": 0.0}, ["warmup", "warmup", "threshold", "threshold", "threshold"]),
        ({**DBPRUNE, "warmup_steps": 0}, ["first", "below", "below", "limit", "limit"]),
        ({"type": "FBCache", "residual_diff_threshold": 0.9, "warmup_steps": 4}, [*["warmup"] * 4, "below"]),
        ({"type": "none"}, ["threshold"] * 5),
    ],
)
def test_reasons(flux, options, reasons):
    _, report = draw_cached(flux, options, Job(steps=5))
    assert [s["images"][0]["reason"] for s in report.to_dict()["steps"]] == reasons
    assert report.to_dict()["method"] == options["type"]


def test_fn_and_bn_may_leave_no_middle(flux):
    """Nothing to save, but the decision is taken and reported as ever."""
    options = {**DBCACHE, "Fn_compute_blocks": 3, "Bn_compute_blocks": 5, "Bn_compute_blocks_ids": ()}
    job = Job(steps=5)
    outputs, report = draw_cached(flux, options, job)
    totals = report.to_dict()["totals"]
    assert totals["cached_steps"] == [2]
    assert totals["computed_block_fraction"] == [1.0]
    assert all(torch.equal(a, b) for a, b in zip(outputs, draw(flux, job), strict=True))


def test_steps_count_within_their_branch(flux):
    with cache_session(flux, DBCACHE) as report:
        for branch in ("cond", "uncond", "cond", "cond"):
            with flux.cache_context(branch):
                draw(flux, Job(steps=1))
        draw(flux, Job(steps=1))
    places = [(s["branch"], s["step"]) for s in report.to_dict()["steps"]]
    assert places == [("cond", 0), ("uncond", 0), ("cond", 1), ("cond", 2), ("default", 0)]
    assert report.to_dict()["totals"]["steps"] == 5


def test_it_can_be_read_while_the_job_runs_and_afterwards(flux):
    seen = []
    with cache_session(flux, DBCACHE) as report:
        draw(flux, Job(steps=4), on_step=lambda _: seen.append(report.to_dict()["totals"]["steps"]))
    assert seen == [0, 1, 2, 3]
    assert report.to_dict()["totals"]["steps"] == 4


def test_an_empty_session_has_a_report(flux):
    with cache_session(flux, DBCACHE) as report:
        pass
    assert report.to_dict()["totals"] == {
        "steps": 0, "cached_steps": [], "computed_block_fraction": [], "collectives": 0, "non_finite": 0,
    }  # fmt: skip


@pytest.mark.parametrize("detail", [False, True])
@pytest.mark.parametrize("options", [DBCACHE, DBPRUNE])
def test_it_is_strict_json(flux, options, detail):
    """NaN is no JSON: a difference without a value is null."""
    with cache_session(flux, options) as report, torch.no_grad():
        for step in range(4):
            latents = Job().start() * (float("nan") if step == 3 else 1.0)
            flux(hidden_states=latents, timestep=Job().timestep(0), return_dict=False, **Job().static())
    result = report.to_dict(detail=detail)
    assert result["totals"]["non_finite"] > 0
    json.loads(json.dumps(result, allow_nan=False))


def test_a_difference_equal_to_the_threshold_is_computed(flux):
    """Strictly below, as published."""
    job, options = Job(steps=2), {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 1}

    def second_step(threshold: float):
        return draw_cached(flux, options | {"residual_diff_threshold": threshold}, job)[1].steps[1].images[0]

    difference = second_step(0.9).residual_diff
    assert not second_step(difference).cached
    assert second_step(math.nextafter(difference, 1.0)).cached
