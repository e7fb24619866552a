"""BudgetCache: exactly the budget is computed, where the rule says; the number of steps is known wherever it is run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cache_core import BudgetCacheOptions, apply_cache_on_pipe, parse_options
from cache_core.pipe import cache_reports
from tests.helpers.tiny_flux import Job, decisions, draw_cached, tiny_flux
from tests.helpers.tiny_models import load_tiny, tiny_folder

MODEL = tiny_flux()
BLOCKS = 8


def affordable(steps: int, speedup: float, always: int, warmup: int) -> int:
    """By trial: the most whole steps that leave the share of blocks at 1 / speedup or less."""
    within = [c for c in range(steps + 1) if c * BLOCKS + (steps - c) * always <= steps * BLOCKS / speedup + 1e-6]
    return min(steps, max([*within, warmup, 1]))


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 14), st.floats(1.0, 6.0), st.integers(1, 3), st.integers(0, 2), st.integers(0, 6), st.integers(2, 3)
)
def test_exactly_the_budget_is_computed(steps: int, speedup: float, first: int, last: int, warmup: int, nodes: int):
    options = BudgetCacheOptions(
        speedup=speedup, Fn_compute_blocks=first, Bn_compute_blocks=last, warmup_steps=warmup, forecast_nodes=nodes
    )
    job = Job(seeds=(1, 2), steps=steps)
    _, report = draw_cached(MODEL, options.for_steps(steps), job)
    expected = affordable(steps, speedup, first + last, warmup)
    for image in range(2):
        assert sum(not cached for cached, *_ in decisions(report, image)) == expected
        assert [reason for _, reason, *_ in decisions(report, image)][:warmup] == ["warmup"] * min(warmup, steps)
    assert report.computed_block_fraction == pytest.approx([options.known_share(steps, BLOCKS)] * 2)


@pytest.mark.parametrize("speedup", [1.6, 2.2, 3.0])
def test_every_decision_follows_from_what_was_seen_and_what_is_left(speedup: float):
    steps, warmup = 24, 3
    options = BudgetCacheOptions(speedup=speedup, warmup_steps=warmup, num_steps=steps)
    _, report = draw_cached(MODEL, options, Job(seeds=(1, 2, 3), steps=steps))
    asked = 0
    for image in range(3):
        budget, rates, last, done = affordable(steps, speedup, 1, warmup), [], warmup - 1, 0
        for record in report.steps[warmup:]:
            decision, steps_left, left = record.images[image], steps - record.step, budget - warmup - done
            even = (budget - warmup) / (steps - warmup) * (record.step - warmup + 1)
            rule = None
            if left == steps_left or done <= even - 1.5:
                rule = "compute"
            elif left == 0 or done > even - 0.5:
                rule = "reuse"
            if left < steps_left:
                rates.append(decision.residual_diff / (record.step - last) ** 0.5)
            if rule:
                assert (decision.cached, decision.reason) == (rule == "reuse", "budget"), record.step
                assert decision.differences == {}
            else:
                threshold = sum(rates) / len(rates) * (steps_left / left - 0.5) ** 0.5
                assert decision.differences == {0: (decision.residual_diff, pytest.approx(threshold))}
                assert decision.cached == (decision.residual_diff < threshold), record.step
                assert decision.reason == ("below" if decision.cached else "threshold")
                asked += 1
            if not decision.cached:
                done, last = done + 1, record.step
        assert done == budget - warmup
    json.dumps(report.to_dict(detail=True), allow_nan=False)
    assert asked > 5


def test_images_spend_their_own_budgets_where_they_need_them():
    job = Job(seeds=(1, 2, 3, 4), steps=16)
    each = [BudgetCacheOptions(speedup=speedup, warmup_steps=2, num_steps=16) for speedup in (1.5, 2.0, 2.0, 3.0)]
    _, report = draw_cached(MODEL, each, job)
    counts = [sum(not cached for cached, *_ in decisions(report, image)) for image in range(4)]
    assert counts == [affordable(16, own.speedup, 1, 2) for own in each]
    steps = [[cached for cached, *_ in decisions(report, image)] for image in (1, 2)]
    assert steps[0] != steps[1], "two images of one budget compute different steps"


def test_the_number_of_steps_must_be_known():
    with pytest.raises(ValueError, match="num_steps"):
        draw_cached(MODEL, BudgetCacheOptions(), Job(steps=6))
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        parse_options({"type": "BudgetCache", "speedup": 0.5})
    assert BudgetCacheOptions(num_steps=20).for_steps(28).num_steps == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speedup": 1.0}, "speedup=1"),
        ({"warmup_steps": 28}, "warmup_steps=28"),
        ({"Fn_compute_blocks": 6, "Bn_compute_blocks": 2}, "cover every block"),
        ({}, ""),
    ],
)
def test_what_saves_nothing_is_told(options: dict[str, Any], says: str):
    reasons = BudgetCacheOptions(**options).why_nothing_is_saved(28, BLOCKS)
    assert says in " ".join(reasons) if says else reasons == []


@pytest.mark.parametrize(
    ("asked", "calls"), [({"num_inference_steps": 8}, 8), ({"sigmas": [1.0, 0.8, 0.5, 0.3, 0.2, 0.1]}, 6)]
)
def test_a_pipeline_tells_its_steps(asked: dict[str, Any], calls: int):
    pipe = load_tiny(tiny_folder("flux"))
    apply_cache_on_pipe(pipe, "budget", speedup=2.0, warmup_steps=1)
    pipe("a red circle", height=64, width=64, output_type="latent", max_sequence_length=16, **asked)
    (report,) = cache_reports(pipe).values()
    always = 1 / report.num_blocks
    most = max(c for c in range(calls + 1) if c + (calls - c) * always <= calls / 2 + 1e-9)
    assert len(report.steps) == calls
    assert sum(not step.images[0].cached for step in report.steps) == most


def test_steps_that_strength_leaves_out_are_not_counted():
    pipe = load_tiny(tiny_folder("flux"))
    from_image = FluxImg2ImgPipeline(**pipe.components)
    apply_cache_on_pipe(from_image, "budget", speedup=2.0, warmup_steps=1)
    image = torch.zeros(1, 3, 64, 64)
    from_image(
        "a red circle", image=image, strength=0.5, num_inference_steps=12, height=64, width=64,
        output_type="latent", max_sequence_length=16,
    )  # fmt: skip
    (report,) = cache_reports(from_image).values()
    assert len(report.steps) == 6
    assert 0 < sum(not step.images[0].cached for step in report.steps) <= 3


def test_calls_beyond_the_last_step_are_reused():
    options = BudgetCacheOptions(speedup=2.0, warmup_steps=1, num_steps=6)
    _, report = draw_cached(MODEL, options, Job(steps=9))
    assert [cached for cached, *_ in decisions(report)][6:] == [True] * 3


def test_a_speedup_out_of_reach_is_told_with_what_is_reached():
    options = BudgetCacheOptions(speedup=10.0, warmup_steps=4)
    (told,) = options.why_less_is_saved(28, BLOCKS)
    reached = 28 * BLOCKS / (4 * BLOCKS + 24)
    assert "speedup=10" in told
    assert "warmup_steps=4" in told
    assert f"is at most {reached:.2f} here" in told
    assert BudgetCacheOptions(speedup=2.0).why_less_is_saved(28, BLOCKS) == []
    assert BudgetCacheOptions(speedup=2.0, num_steps=10).known_share(20, BLOCKS) == pytest.approx(
        (4 * BLOCKS + 16) / (20 * BLOCKS)  # four whole steps of ten; whatever comes behind those is reused
    )
