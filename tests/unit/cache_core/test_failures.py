"""What goes wrong inside a job: it is computed, counted and reported, and the job leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cache_core import JobAborted, cache_session
from cache_core.hooks import attachment_of
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, opened

DBCACHE = {
    "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,),
    "non_compute_blocks_diff_threshold": 0.9, "residual_diff_threshold": 0.9, "warmup_steps": 2,
}  # fmt: skip
DBPRUNE = {
    "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.9,
    "warmup_steps": 2,
}  # fmt: skip
METHODS = {"DBCache": DBCACHE, "DBPrune": DBPRUNE}


def _open_loop(transformer: Any, job: Job, spoiled: dict[int, tuple[int, float]]) -> list[torch.Tensor]:
    """The job with inputs given from outside, so that a step that goes wrong does not change the next one's input.

    ``spoiled`` maps a step to (image, value)."""
    latents, outputs = job.start(), []
    with torch.no_grad():
        for step in range(job.steps):
            given = latents + 0.02 * step
            if step in spoiled:
                image, value = spoiled[step]
                given[image, 3, 2] = value
            outputs.append(
                transformer(hidden_states=given, timestep=job.timestep(0), return_dict=False, **job.static())[0]
            )
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", METHODS)
def test_not_finite_is_computed_counted_and_forgotten(flux, method, bad):
    """Image 1 of two goes bad at step 4; image 0 must not notice."""
    job = Job(seeds=(1, 2), steps=8)
    clean, spoiled = {}, {4: (1, bad)}
    with cache_session(flux, METHODS[method]) as healthy:
        _open_loop(flux, job, clean)
    with cache_session(flux, METHODS[method]) as report:
        outputs = _open_loop(flux, job, spoiled)
    uncached = _open_loop(flux, job, spoiled)

    reasons = [d[1] for d in decisions(report, 1)]
    assert reasons == ["warmup", "warmup", "below", "below", "non_finite", "first", "below", "below"]
    assert decisions(report, 1)[4] == (False, "non_finite", ())
    assert not outputs[4][1].isfinite().all()  # the bad step is what the model makes of it
    torch.testing.assert_close(outputs[5][1], uncached[5][1], atol=1e-5, rtol=1e-5)  # and the next one computed afresh
    assert outputs[7].isfinite().all()
    asked = {"DBCache": 1, "DBPrune": 6}[method]  # DBPrune asks at each of its blocks
    assert report.non_finite == report.to_dict()["totals"]["non_finite"] == asked
    at_four = report.steps[4].images[1]
    assert {pair[0] for pair in at_four.differences.values()} == {None}
    assert at_four.residual_diff is None
    assert decisions(report, 0) == decisions(healthy, 0)
    assert healthy.non_finite == 0


@pytest.mark.parametrize("method", METHODS)
def test_not_finite_in_warmup_never_becomes_a_reference(flux, method):
    """Nothing is compared in warm-up, so the spoiled reference shows at the first comparison, and is dropped there."""
    job = Job(steps=6)
    with cache_session(flux, METHODS[method]) as report:
        outputs = _open_loop(flux, job, {1: (0, float("nan"))})
    assert [d[1] for d in decisions(report)] == ["warmup", "warmup", "non_finite", "first", "below", "below"]
    assert all(outputs[step].isfinite().all() for step in (0, 2, 3, 4, 5))


@pytest.mark.parametrize("order", [0, 2])
def test_not_finite_inside_partial_bn(flux, order):
    """A compared Bn block goes bad in a cached step: it is computed then, counted, and known again later."""
    job, broken = Job(steps=8), [False]

    def spoil(_, arguments, kwargs):
        if broken[0]:
            kwargs["hidden_states"] = kwargs["hidden_states"] * float("nan")
        return arguments, kwargs

    handle = flux.single_transformer_blocks[1].register_forward_pre_hook(spoil, with_kwargs=True)  # id 4: first of Bn
    latents = job.start()
    options = {**DBCACHE, "taylor_order": order, "max_continuous_cached_steps": 3}
    with cache_session(flux, options) as report, torch.no_grad():
        for step in range(job.steps):
            broken[0] = step == 3
            flux(hidden_states=latents, timestep=job.timestep(0), return_dict=False, **job.static())
    handle.remove()
    images = [step.images[0] for step in report.steps]
    assert [i.cached for i in images] == [False, False, True, True, True, False, True, True]
    assert {b: pair[0] for b, pair in images[3].differences.items() if b} == {4: None, 5: None, 6: None}
    assert set(images[4].differences) == {0}  # forgotten
    assert set(images[6].differences) == {0, 4, 5, 6}  # known again after the computed step 5
    assert report.non_finite == 3


@pytest.mark.parametrize("method", METHODS)
def test_zero_reference_has_no_difference_and_is_no_fault(flux, method):
    """0 / 0 says nothing: compute, reason threshold, not counted as non-finite."""
    for stack in (flux.transformer_blocks, flux.single_transformer_blocks):
        for block in stack:
            for parameter in block.parameters():
                parameter.data.zero_()  # every block adds nothing
    for embedder in (flux.x_embedder, flux.context_embedder):
        embedder.weight.data.zero_()
        embedder.bias.data.zero_()
    _, report = draw_cached(flux, METHODS[method], Job(steps=4))
    assert [d[1] for d in decisions(report)] == ["warmup", "warmup", "threshold", "threshold"]
    for step in report.steps[2:]:
        assert step.images[0].residual_diff is None
        assert step.images[0].differences
        assert {pair[0] for pair in step.images[0].differences.values()} == {None}
    assert report.non_finite == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_that_changes_size_is_an_error_naming_both(flux, method):
    job = Job(seeds=(1, 2, 3), steps=3)
    with cache_session(flux, METHODS[method]):
        draw(flux, job)
        with pytest.raises(ValueError, match=r"batch size changed inside branch 'default': 3 .* 2 at step 3"):
            draw(flux, Job(seeds=(1, 2), steps=1))


def test_another_branch_may_have_another_batch(flux):
    with cache_session(flux, DBCACHE) as report:
        draw(flux, Job(seeds=(1, 2), steps=3))
        with flux.cache_context("other"):
            draw(flux, Job(seeds=(1,), steps=3))
    assert [len(step.images) for step in report.steps] == [2, 2, 2, 1, 1, 1]


def test_another_image_size_is_an_error(flux):
    with cache_session(flux, DBCACHE):
        draw(flux, Job(steps=3))
        with pytest.raises(ValueError, match="input shape changed"):
            draw(flux, Job(steps=1, side=5))


def test_a_session_inside_a_session_is_an_error_and_harms_neither(flux):
    job = Job(steps=6)
    expected, expected_report = draw_cached(flux, DBCACHE, job)
    with cache_session(flux, DBCACHE) as report:
        with pytest.raises(RuntimeError, match="already open on this transformer"), cache_session(flux, DBPRUNE):
            pass
        outputs = draw(flux, job)
    assert report.to_dict() == expected_report.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


class _BoomError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["before", "first block", "middle", "last block", "after"])
def test_an_exception_frees_everything(flux, method, place):
    """Wherever it comes from; and the next job on the same transformer is as if nothing had been."""
    before = [dict(module.__dict__) for module in flux.modules()]
    job = Job(steps=6)
    expected, _ = draw_cached(flux, METHODS[method], job)
    modules = {
        "before": flux.x_embedder,
        "first block": flux.transformer_blocks[0].norm1,
        "middle": flux.single_transformer_blocks[0].norm,
        "last block": flux.single_transformer_blocks[4].norm,
        "after": flux.norm_out,
    }
    armed = [False]

    def explode(*_):
        if armed[0]:
            raise _BoomError

    def arm(step: int) -> None:
        armed[0] = step == (4 if place != "middle" else 1)

    handle = modules[place].register_forward_pre_hook(explode)
    with pytest.raises(_BoomError), opened(flux, METHODS[method]) as session:
        draw(flux, job, on_step=arm)
    handle.remove()
    assert session.bytes_held() == 0
    assert not hasattr(flux, "_diffusers_hook")
    after = [dict(module.__dict__) for module in flux.modules()]
    assert after == before
    outputs, _ = draw_cached(flux, METHODS[method], job)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_an_abort_is_looked_at_in_every_step(flux, method):
    options, job = METHODS.get(method, {"type": "none"}), Job(steps=6)
    expected, _ = draw_cached(flux, options, job)
    for last in range(job.steps):
        step, polls = [-1], []

        def tick(now: int, step=step) -> None:
            step[0] = now

        def wish(step=step, polls=polls, last=last) -> bool:
            polls.append(step[0])
            return step[0] == last

        with (
            pytest.raises(JobAborted) as caught,
            opened(flux, options, should_abort=wish) as session,
        ):
            draw(flux, job, on_step=tick)
        assert (caught.value.step, caught.value.branch) == (last, "default")
        assert polls == list(range(last + 1))  # once per step, no more
        assert len(session.report.steps) == last
        assert session.bytes_held() == 0
        assert attachment_of(flux) is None
    outputs, _ = draw_cached(flux, options, job)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("missing", ["2", "4"])
def test_a_block_left_out_is_an_error(flux, missing):
    """It would leave the policies one block behind; better loud than wrong."""
    with cache_session(flux, DBCACHE):
        draw(flux, Job(steps=2))
        del flux.single_transformer_blocks._modules[missing]
        with pytest.raises(RuntimeError, match="called 7 of its 8 blocks"):
            draw(flux, Job(steps=1))
