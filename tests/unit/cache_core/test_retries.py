"""A caller that survives an exception inside a step and repeats the step, in the same session."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from cache_core import cache_session
from tests.helpers.joined import OutOfMemory
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, tiny_flux

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
    "ForecastCache": {
        "type": "ForecastCache", "Bn_compute_blocks": 1, "residual_diff_threshold": 0.9, "warmup_steps": 3,
        "max_cached_steps": 3, "max_continuous_cached_steps": -1,
    },
}  # fmt: skip
STEPS = 9


class _OutOfMemoryError(Exception):
    pass


JOB = Job(seeds=(1, 2), steps=STEPS)


def _call(flux: Any, now: int, moved: float = 0.0) -> torch.Tensor:
    latents = JOB.start() + 0.02 * now + moved
    return flux(hidden_states=latents, timestep=JOB.timestep(0), return_dict=False, **JOB.static())[0]


def _options(method: str, order: int) -> dict[str, Any]:
    return OPTIONS[method] | ({"taylor_order": order} if method != "ForecastCache" else {"forecast_nodes": order or 3})


@functools.cache
def _unharmed(method: str | None, order: int = 0) -> list[torch.Tensor]:
    """What is drawn where no call fails; None: without a cache."""
    flux = tiny_flux()
    with torch.no_grad(), cache_session(flux, _options(method, order)) if method else nullcontext():
        return [_call(flux, now) for now in range(STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("block", [0, 2, 5, 7])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_step_after_one_that_failed(flux, method, block, step, order, again):
    """The same again is decided as if nothing had been, another one is computed afresh: neither is judged by, nor mixed
    with, what the first try stored. The limit on reused steps holds over both."""
    module = [*flux.transformer_blocks, *flux.single_transformer_blocks][block]
    armed = [False]

    def explode(*_):
        if armed[0]:
            armed[0] = False
            raise _OutOfMemoryError

    inside = module.norm1 if block < 3 else module.norm
    inside.register_forward_pre_hook(explode)
    with torch.no_grad(), cache_session(flux, _options(method, order)) as report:
        outputs, failed = [], 0
        for now in range(STEPS):
            armed[0] = now == step
            try:
                output = _call(flux, now)
            except _OutOfMemoryError:
                failed += 1
                output = _call(flux, now, 0.0 if again else 1e-6)
            armed[0] = False
            outputs.append(output)

    assert failed or (step == 5 and block in (2, 5))  # a reused block cannot fail
    assert [record.step for record in report.steps] == list(range(STEPS))
    for image in range(2):
        reasons = [reason for _, reason, _ in decisions(report, image)]
        reused = ["below"] * 3
        if failed and step == 5 and not again:
            assert reasons == ["warmup"] * 3 + reused[:2] + ["first"] + reused[2:] + ["limit"] * 2
            torch.testing.assert_close(outputs[step][image], _unharmed(None)[step][image], atol=1e-5, rtol=1e-5)
        else:
            assert reasons == ["warmup"] * 3 + reused + ["limit"] * 3
            if again:
                assert all(map(torch.equal, outputs, _unharmed(method, order)))


def test_a_first_call_that_failed_may_be_followed_by_a_smaller_one(flux):
    """Nothing was remembered, so the batch may still be another."""
    with cache_session(flux, OPTIONS["DBPrune"]) as report:
        with pytest.raises(torch.OutOfMemoryError), OutOfMemory(300):
            draw(flux, Job(seeds=(1, 2), steps=1))
        draw(flux, Job(seeds=(1,), steps=2))
    assert [(step.branch, len(step.images)) for step in report.steps] == [("default", 1)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_comparisons_of_a_call_that_failed_count_once(flux, method):
    """Also those whose difference is not finite: known once more, counted once, and forgotten as ever."""
    job, spoilt = Job(steps=6), [False]
    handle = flux.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: (
            (args, kwargs | {"hidden_states": kwargs["hidden_states"] * float("nan")}) if spoilt[0] else None
        ),
        with_kwargs=True,
    )

    def call(now: int, memory: float = 1e9) -> None:
        spoilt[0] = now == 4
        with torch.no_grad(), OutOfMemory(memory):
            flux(hidden_states=job.start(), timestep=job.timestep(0), return_dict=False, **job.static())

    reports = []
    for memory in (None, 700):
        with cache_session(flux, OPTIONS[method]) as report:
            for now in range(job.steps):
                if now == 4 and memory is not None:
                    with pytest.raises(torch.OutOfMemoryError):
                        call(now, memory)
                call(now)
        reports.append(report)
    handle.remove()
    assert reports[0].non_finite == reports[1].non_finite > 0
    assert decisions(reports[0]) == decisions(reports[1])
    assert [len(step.images[0].differences) for step in reports[0].steps] == [
        len(step.images[0].differences) for step in reports[1].steps
    ]


def test_a_first_run_that_failed_is_looked_at_again(flux):
    """What a block does to its input is known from a run that came to its end."""
    block, forward, memory = flux.transformer_blocks[0], flux.transformer_blocks[0].forward, [False]

    def in_place(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        if memory[0]:
            memory[0] = False
            raise torch.OutOfMemoryError
        output = forward(hidden_states=hidden_states.clone(), **kwargs)
        hidden_states.zero_()
        return output

    job = Job(steps=6)
    expected, told = draw_cached(flux, OPTIONS["DBPrune"], job)
    block.forward, memory[0] = in_place, True
    with cache_session(flux, OPTIONS["DBPrune"]) as report:
        with pytest.raises(torch.OutOfMemoryError):
            draw(flux, job)
        outputs = draw(flux, job)
    assert decisions(report) == decisions(told)
    assert all(map(torch.equal, outputs, expected))
