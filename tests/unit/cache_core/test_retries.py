"""A caller that survives an exception inside a step and repeats the step, in the same session."""

from __future__ import annotations

import pytest
import torch

from cache_core import cache_session
from tests.helpers.tiny_flux import Job, decisions

OPTIONS = {
    "DBCache": {
        "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,),
        "non_compute_blocks_diff_threshold": 0.9, "residual_diff_threshold": 0.9, "warmup_steps": 3,
        "max_cached_steps": 3,
    },
    "DBPrune": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.9,
        "warmup_steps": 3, "max_pruned_steps": 3,
    },
}  # fmt: skip
STEPS = 9


class _OutOfMemoryError(Exception):
    pass


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("block", [0, 2, 5, 7])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_repeated_step_is_computed_afresh(flux, method, block, step, order):
    """Never judged by, nor mixed with, what the first try stored; the limit on reused steps holds over both."""
    module = [*flux.transformer_blocks, *flux.single_transformer_blocks][block]
    armed = [False]

    def explode(*_):
        if armed[0]:
            armed[0] = False
            raise _OutOfMemoryError

    inside = module.norm1 if block < 3 else module.norm
    inside.register_forward_pre_hook(explode)
    job = Job(seeds=(1, 2), steps=STEPS)

    def call(now: int) -> torch.Tensor:
        latents = job.start() + 0.02 * now
        return flux(hidden_states=latents, timestep=job.timestep(0), return_dict=False, **job.static())[0]

    with torch.no_grad():
        uncached = [call(now) for now in range(STEPS)]
        with cache_session(flux, OPTIONS[method] | {"taylor_order": order}) as report:
            outputs, failed = [], 0
            for now in range(STEPS):
                armed[0] = now == step
                try:
                    output = call(now)
                except _OutOfMemoryError:
                    failed += 1
                    output = call(now)
                armed[0] = False
                outputs.append(output)

    assert failed or (step == 5 and block in (2, 5))  # a reused block cannot fail
    assert [record.step for record in report.steps] == list(range(STEPS))
    for image in range(2):
        reasons = [reason for _, reason, _ in decisions(report, image)]
        reused = ["below"] * 3
        if failed and step == 5:
            assert reasons == ["warmup"] * 3 + reused[:2] + ["first"] + reused[2:] + ["limit"] * 2
            torch.testing.assert_close(outputs[step][image], uncached[step][image], atol=1e-5, rtol=1e-5)
        else:
            assert reasons == ["warmup"] * 3 + reused + ["limit"] * 3
