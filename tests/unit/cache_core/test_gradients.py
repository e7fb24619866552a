"""A session around a transformer that is called with gradients on, as a script without ``torch.no_grad()`` does."""

from __future__ import annotations

import pytest
import torch

from cache_core import difference
from tests.helpers.tiny_flux import Job, opened, tiny_flux

OPTIONS = {
    "DBCache": {
        "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,),
        "non_compute_blocks_diff_threshold": 0.9, "residual_diff_threshold": 0.9, "warmup_steps": 2,
    },
    "DBPrune": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.9,
        "warmup_steps": 2,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("method", OPTIONS)
def test_what_is_remembered_holds_no_graph(monkeypatch, method, order):
    """Else every step's activations would live until the job ends. Sums of real sizes are chunked: ``out=``."""
    monkeypatch.setattr(difference, "_CHUNK", 256)
    flux, job = tiny_flux().requires_grad_(True), Job(seeds=(1, 2), steps=5)
    with opened(flux, OPTIONS[method] | {"taylor_order": order}) as session:
        for step in range(job.steps):
            latents = (job.start() + 0.02 * step).requires_grad_(True)
            output = flux(hidden_states=latents, timestep=job.timestep(0), return_dict=False, **job.static())[0]
            held = list(session.tensors())
            assert bool(held) == (step >= 1 - order)
            assert not any(tensor.requires_grad for tensor in held)
            output.sum().backward()  # a reused step too, through the stream that the residual is added to
            assert latents.grad.abs().sum() > 0
        assert session.report.steps[-1].images[0].reason == "below"


@pytest.mark.parametrize("method", OPTIONS)
def test_a_computed_step_has_the_gradients_of_the_model_alone(method):
    job = Job(seeds=(1, 2), steps=1)

    def gradients(flux):
        flux(hidden_states=job.start(), timestep=job.timestep(0), return_dict=False, **job.static())[0].sum().backward()
        return [parameter.grad for parameter in flux.parameters() if parameter.grad is not None]

    expected = gradients(tiny_flux().requires_grad_(True))
    flux = tiny_flux().requires_grad_(True)
    with opened(flux, OPTIONS[method]):
        found = gradients(flux)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
