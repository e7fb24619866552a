"""ControlNet residuals enter between the blocks: a step that is reused must add them once, not twice and not never."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cache_core import cache_session
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, gap

METHODS = {
    "DBCache": {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1},
    "DBCache, Fn ends the doubles": {"type": "DBCache", "Fn_compute_blocks": 3, "Bn_compute_blocks": 0},
    "DBCache, middle ends the doubles": {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 5},
    "DBCache, partial Bn": {
        "type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,),
    },
    "FBCache": {"type": "FBCache"},
    "DBPrune": {"type": "DBPrune", "Fn_compute_blocks": 0, "Bn_compute_blocks": 0},
    "DBPrune, every second": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "non_prune_blocks_ids": (2, 4, 6),
    },
}  # fmt: skip


def _job(seeds: tuple[int, ...]) -> Job:
    """As many residuals as blocks in one stack, fewer than blocks in the other (they repeat)."""
    job = Job(seeds=seeds, steps=5)
    samples = [0.3 * job.noise(200 + i, job.side**2, 64) for i in range(5)]
    return replace(job, extra={"controlnet_block_samples": samples[:3], "controlnet_single_block_samples": samples[3:]})


def _same_step_again_and_again(transformer: Any, job: Job) -> list[torch.Tensor]:
    with torch.no_grad():
        return [
            transformer(hidden_states=job.start(), timestep=job.timestep(0), return_dict=False, **job.static())[0]
            for _ in range(job.steps)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_a_reused_step_with_unchanged_inputs_equals_the_computed_one(flux, method, seeds, order):
    job = _job(seeds)
    options = {**METHODS[method], "warmup_steps": 2, "residual_diff_threshold": 0.1, "taylor_order": order}
    with cache_session(flux, options) as report:
        outputs = _same_step_again_and_again(flux, job)
    assert [d[1] for d in decisions(report)] == ["warmup", "warmup", "below", "below", "below"]
    assert gap(outputs, [outputs[0]] * job.steps) <= 1e-5
    plain = _same_step_again_and_again(flux, replace(job, extra={}))
    assert gap(outputs, plain) > 0.05  # the residuals do matter to the image


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_with_threshold_zero_nothing_changes(flux, method):
    job = _job((1, 2))
    outputs, _ = draw_cached(flux, {**METHODS[method], "residual_diff_threshold": 0.0}, job)
    assert all(torch.equal(a, b) for a, b in zip(outputs, draw(flux, job), strict=True))
