"""The forecast: residuals that are polynomials of the step are met exactly, however uneven the computed steps."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache_core import cache_session
from cache_core.policies.residual import PER_BLOCK, SPAN, Residual, extrapolation_weights
from tests.helpers.tiny_flux import Job, decisions, draw, gap, tiny_flux


def _polynomial(coefficients: torch.Tensor, step: float) -> torch.Tensor:
    return sum(c * (step / 8) ** power for power, c in enumerate(coefficients))


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_exact_up_to_its_order_and_not_beyond(order, degree):
    """Both streams: published implementations forget the text stream in one place."""
    image, text = torch.randn(degree + 1, 6, 8), torch.randn(degree + 1, 3, 8)
    residual = Residual(order, limit=math.inf)
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


@given(
    gaps=st.lists(st.integers(1, 6), min_size=3, max_size=6),
    ahead=st.integers(1, 12),
    limit=st.sampled_from([PER_BLOCK, SPAN]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 6),
)
def test_order_two_magnifies_no_error_beyond_its_limit(gaps, ahead, limit, signs):
    """Every recorded value wrong by at most 1, in the worst way: without the limit 31 and more come out of it."""
    residual, step = Residual(2, limit), 0
    for gap_to_next, sign in zip(gaps, signs, strict=False):
        step += gap_to_next
        residual.record(step, torch.full((1,), sign), None)
    error = residual.add_to(step + ahead, torch.zeros(1), None)[0]
    assert float(error.abs()) <= limit * 1.0001


@pytest.mark.parametrize(
    ("limit", "at", "degree"),
    [
        (SPAN, 5, 2), (SPAN, 6, 2), (SPAN, 7, 1), (SPAN, 12, 1), (SPAN, 13, 0),
        (PER_BLOCK, 5, 1), (PER_BLOCK, 6, 1), (PER_BLOCK, 7, 0),
    ],
)  # fmt: skip
def test_order_two_keeps_the_highest_order_that_the_limit_allows(limit, at, degree):
    """From steps 2, 3 and 4: a parabola magnifies 7, 17, 31, ... times, a line 3, 5, 7, ... times."""
    residual = Residual(2, limit)
    for step in (2, 3, 4):
        residual.record(step, torch.tensor([2.0**step]), None)
    on = at - 4
    forecasts = {0: 16, 1: 16 + 8 * on, 2: 16 + 8 * on + 4 * on * (on + 1) / 2}  # Newton: 4, 8, 16 differ by 4, 8; 4
    assert float(residual.add_to(at, torch.zeros(1), None)[0]) == pytest.approx(forecasts[degree])


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
        "warmup_steps": 11, "residual_cache_update_interval": 5,  # three steps of a parabola within its limit
    },
    "partial Bn": {
        **DBCACHE, "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (3,), "non_compute_blocks_diff_threshold": 9.0,
        "warmup_steps": 3, "max_continuous_cached_steps": 2,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_in_a_session_every_cached_step_equals_the_computed_one(method, order):
    """The whole road: what is recorded, when, and at which distance it is read. The text stream is looked at where it
    leaves the last block."""
    clock, job = [0], Job(steps=14 if method == "DBPrune" else 11)

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

    image, text, saved = run(order)
    assert saved >= 3
    assert image < 2e-5
    assert text < 2e-5
    image, text, saved = run(order + 1)
    assert saved >= 3
    assert image > 1e-3  # beyond its order it must be wrong, or the test sees nothing
    assert text > 1e-3
