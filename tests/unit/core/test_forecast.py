"""The forecast: residuals that are polynomials of the step are met exactly, however uneven the computed steps."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch

from cache_core import cache_session
from cache_core.residual import Residual, extrapolation_weights
from tests.unit.core.tiny_flux import Job, decisions, draw, gap, tiny_flux


def _polynomial(coefficients: torch.Tensor, step: float) -> torch.Tensor:
    return sum(c * (step / 8) ** power for power, c in enumerate(coefficients))


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_exact_up_to_its_order_and_not_beyond(order, degree):
    """Both streams: published implementations forget the text stream in one place."""
    image, text = torch.randn(degree + 1, 6, 8), torch.randn(degree + 1, 3, 8)
    residual = Residual(order)
    for step in (0, 1, 4, 9, 11):  # uneven on purpose
        residual.record(step, _polynomial(image, step), _polynomial(text, step))
    hidden, encoder = torch.randn(6, 8), torch.randn(3, 8)
    for at in (12, 13, 17):
        new_hidden, new_encoder = residual.add_to(at, hidden, encoder)
        for new, old, coefficients in ((new_hidden, hidden, image), (new_encoder, encoder, text)):
            error = float((new - old - _polynomial(coefficients, at)).abs().max())
            assert (error < 1e-4) == (degree <= order), (at, error)


def test_order_zero_repeats_the_last_residual_bit_for_bit():
    residual, last = Residual(0), torch.randn(4, 8)
    residual.record(2, torch.randn(4, 8), None)
    residual.record(5, last, None)
    start = torch.randn(4, 8)
    hidden, encoder = residual.add_to(9, start, None)
    assert torch.equal(hidden, start + last)
    assert encoder is None


def test_with_fewer_computed_steps_than_it_could_use_it_takes_what_is_there():
    residual, only = Residual(2), torch.randn(4, 8)
    residual.record(3, only, only)
    assert torch.equal(residual.add_to(7, torch.zeros(4, 8), torch.zeros(4, 8))[0], only)
    assert extrapolation_weights([1, 4], 10) == pytest.approx([-2.0, 3.0])


def _polynomial_flux(degree: int, clock: list[int]) -> Any:
    """FLUX whose blocks add a polynomial of the step to both streams; the first one adds a constant, so that it never
    has a reason to compute."""
    model = tiny_flux()
    for index, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        generator = torch.Generator().manual_seed(index)
        image = 0.3 * torch.randn(degree + 1, 1, 1, 64, generator=generator)
        text = 0.3 * torch.randn(degree + 1, 1, 1, 64, generator=generator)
        if index == 0:
            image, text = image[:1], text[:1]

        def forward(self, hidden_states, encoder_hidden_states, image=image, text=text, **_):
            return encoder_hidden_states + _polynomial(text, clock[0]), hidden_states + _polynomial(image, clock[0])

        block.forward = MethodType(forward, block)
    return model


DBCACHE = {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.5}
METHODS = {
    "DBCache": {**DBCACHE, "warmup_steps": 3, "max_continuous_cached_steps": 2},
    "DBPrune": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 9.0,
        "warmup_steps": 7, "residual_cache_update_interval": 3,
    },
    "partial Bn": {
        **DBCACHE, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,), "non_compute_blocks_diff_threshold": 9.0,
        "warmup_steps": 3, "max_continuous_cached_steps": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_in_a_session_every_cached_step_equals_the_computed_one(method, order):
    """The whole road: what is recorded, when, and at which distance it is read. The text stream is looked at where it
    leaves the last block."""
    clock, job = [0], Job(steps=11)

    def run(degree: int) -> tuple[float, float, int]:
        model, texts = _polynomial_flux(degree, clock), []
        last = model.single_transformer_blocks[-1]
        original = last.forward

        def listen(self, hidden_states, encoder_hidden_states, **kwargs):
            texts.append(encoder_hidden_states)
            return original(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)

        last.forward = MethodType(listen, last)

        def tick(step: int) -> None:
            clock[0] = step

        plain = draw(model, job, on_step=tick)
        plain_texts, texts[:] = list(texts), []
        with cache_session(model, {**METHODS[method], "taylor_order": order}) as report:
            cached = draw(model, job, on_step=tick)
        saved = sum(d[0] or bool(d[2]) for d in decisions(report))
        return gap(cached, plain), gap(texts, plain_texts), saved

    picture, text, saved = run(order)
    assert saved >= 4
    assert picture < 2e-5
    assert text < 2e-5
    picture, text, saved = run(order + 1)
    assert saved >= 4
    assert picture > 1e-3  # beyond its order it must be wrong, or the test sees nothing
    assert text > 1e-3
