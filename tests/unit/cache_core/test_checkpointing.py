"""Gradient checkpointing in a session: the gradients of the same session without it, and no activations kept."""

from __future__ import annotations

from contextlib import nullcontext

import diffusers
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cache_core import cache_session
from cache_core.attaching import let_go
from cache_core.hooks import Attachment
from tests.helpers.conditioned_images import Images
from tests.helpers.tiny_flux import Job, tiny_flux
from tests.helpers.tiny_transformers import TINY, build, call
from tests.unit.cache_core.test_gradients import OPTIONS

ALL = OPTIONS | {"none": {"type": "none"}}


def gradients(flux, options, backward_in_session=True):
    """Of the sum of five steps' predictions: for the weights, and how each step was made."""
    job, outputs = Job(seeds=(1, 2), steps=5), []
    with nullcontext() if options is None else cache_session(flux, options) as report:
        for step in range(job.steps):
            latents = job.start() + 0.02 * step
            outputs.append(flux(hidden_states=latents, timestep=job.timestep(0), return_dict=False, **job.static())[0])
        if backward_in_session:
            sum(output.square().sum() for output in outputs).backward()
    if not backward_in_session:
        sum(output.square().sum() for output in outputs).backward()
    found = {name: parameter.grad for name, parameter in flux.named_parameters() if parameter.grad is not None}
    return found, report


def same(left, right):
    assert left
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["backward in the session", "after it"])
@pytest.mark.parametrize("method", ALL)
def test_gradients_are_those_of_the_session_without_checkpointing(method, inside):
    expected, plain = gradients(tiny_flux().requires_grad_(True), ALL[method], inside)
    flux = tiny_flux().requires_grad_(True)
    flux.enable_gradient_checkpointing()
    function = flux._gradient_checkpointing_func
    found, report = gradients(flux, ALL[method], inside)
    same(found, expected)
    assert report.to_dict() == plain.to_dict()
    assert method == "none" or report.steps[-1].images[0].reason == "below"
    assert flux._gradient_checkpointing_func is function


def test_only_what_runs_is_checkpointed_and_its_activations_are_not_kept():
    def saved(checkpointing):
        flux, count = tiny_flux().requires_grad_(True), []
        if checkpointing:
            flux.enable_gradient_checkpointing(lambda module, *args: calls.append(module) or checkpoint(
                module.__call__, *args, use_reentrant=False
            ))  # fmt: skip
        with torch.autograd.graph.saved_tensors_hooks(lambda t: count.append(t.numel()) or t, lambda t: t):
            _, report = gradients(flux, OPTIONS["DBPrune"])
        return sum(count), sum(max(image.computed_blocks for image in record.images) for record in report.steps)

    calls: list[torch.nn.Module] = []
    full, _ = saved(False)
    lean, computed = saved(True)
    assert len(calls) == computed < 5 * len(Attachment(tiny_flux()).blocks)
    assert lean < full / 2


@pytest.mark.slow
def test_other_calls_are_checkpointed_as_ever():
    """An attachment that stays between sessions, and switching off and on again."""
    flux = tiny_flux().requires_grad_(True)
    attachment = Attachment(flux)
    attachment.kept = True
    flux.enable_gradient_checkpointing()
    gradients(flux, OPTIONS["DBCache"])
    flux.zero_grad()
    expected, _ = gradients(tiny_flux().requires_grad_(True), None)
    same(gradients(flux, None)[0], expected)
    flux.zero_grad()
    flux.disable_gradient_checkpointing()
    expected, _ = gradients(tiny_flux().requires_grad_(True), OPTIONS["DBCache"])
    same(gradients(flux, OPTIONS["DBCache"])[0], expected)
    let_go(attachment)


def test_checkpointing_around_the_whole_transformer_is_refused_by_name():
    flux, job = tiny_flux().requires_grad_(True), Job(seeds=(1,), steps=1)
    with cache_session(flux, OPTIONS["DBCache"]):
        output = checkpoint(
            lambda latents: flux(
                hidden_states=latents, timestep=job.timestep(0), return_dict=False, **job.static()
            )[0],
            job.start().requires_grad_(True), use_reentrant=False,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match=r"called again by backward.*enable_gradient_checkpointing"):
            output.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in TINY if "+" not in n and getattr(diffusers, n)._supports_gradient_checkpointing]
)
def test_every_supported_transformer_checkpoints_its_blocks_in_a_session(name):
    def run(checkpointing):
        model = build(name).requires_grad_(True)
        if checkpointing:
            model.enable_gradient_checkpointing()
        with cache_session(model, {"type": "FBCache", "residual_diff_threshold": 0.5, "warmup_steps": 1}):
            for step in range(2):
                output = call(model, name, Images((1,), (0.01,), step))
            output.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    same(run(True), run(False))
