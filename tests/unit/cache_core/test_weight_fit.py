"""The fit from sums beside numpy's least squares on the vectors, and what happens where there is no fit."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.inner_products import deviation_products, node_products
from cache_core.policies.nodes import Nodes
from cache_core.policies.residual import SPAN
from cache_core.policies.weight_fit import WIDTH, fitted
from tests.helpers.plain import least_squares

NAN, INF = math.nan, math.inf


def _nodes(tensors: list[torch.Tensor], shard: slice = slice(None)) -> Nodes:
    nodes = Nodes(3)
    for step, tensor in enumerate(tensors):
        nodes.record(step, tensor[shard])
    return nodes


def _fit(tensors: list[torch.Tensor], now: torch.Tensor, otherwise: list[float]):
    sums = _nodes(tensors).products(now, torch.zeros_like(now))
    assert len(sums) == WIDTH
    return fitted(otherwise, *(float(s) for s in sums))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 3),
    tokens=st.integers(2, 40),
    moved=st.sampled_from([1.0, 0.1, 0.01]),
)
def test_the_fit_is_numpys_least_squares_on_the_whole_vectors(seed: int, count: int, tokens: int, moved: float):
    """Also where residuals differ by a hundredth only, of which float32 sums keep enough."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(tokens, 16, generator=generator)
    tensors = [base + moved * torch.randn(tokens, 16, generator=generator) for _ in range(count)]
    now = base + moved * torch.randn(tokens, 16, generator=generator)
    verdict = _fit(tensors, now, [1.0])
    weights, error = least_squares(tensors, now)
    assert list(verdict.weights) == pytest.approx(weights, abs=2e-4)
    assert verdict.difference == pytest.approx(error, rel=1e-3, abs=1e-5)
    assert sum(verdict.weights) == pytest.approx(1.0)


def test_a_shard_for_each_rank_in_any_order_is_the_same_fit():
    """Uneven shards; what is added up in another order differs by rounding and no more."""
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(37, 8, generator=generator) for _ in range(3)]
    now = torch.randn(37, 8, generator=generator)
    whole = _fit(tensors, now, [1.0])
    shards = [
        [float(s) for s in _nodes(tensors, cut).products(now[cut], torch.zeros_like(now[cut]))]
        for cut in (slice(0, 5), slice(5, 6), slice(6, 30), slice(30, 37))
    ]
    for order in range(5):
        random.Random(order).shuffle(shards)
        summed = fitted([1.0], *(sum(column) for column in zip(*shards, strict=True)))
        assert list(summed.weights) == pytest.approx(list(whole.weights), abs=1e-5)
        assert summed.difference == pytest.approx(whole.difference, rel=1e-5)


def test_chunks_add_up_as_in_one_go():
    """More tokens than a chunk has; the last chunk is uneven."""
    generator = torch.Generator().manual_seed(2)
    current, minus, *tensors = (torch.randn(1500, 512, generator=generator).bfloat16() for _ in range(5))
    moved = ((current - minus).double() - tensors[-1].double()).flatten().numpy()
    older = [(tensor.double() - tensors[-1].double()).flatten().numpy() for tensor in (tensors[1], tensors[0])]
    told = [float(s) for s in deviation_products(current, minus, tensors)]
    assert told == pytest.approx([moved @ moved, moved @ older[0], moved @ older[1]], rel=1e-5)
    between = [float(s) for s in node_products(tensors)]
    last = tensors[-1].double().flatten().numpy()
    expected = [last @ last, older[0] @ older[0], older[0] @ older[1], older[1] @ older[1]]
    assert between == pytest.approx(expected, rel=1e-5)


def _vector(*values: float) -> torch.Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("nodes", "now", "weights", "error"),
    [
        # Three nodes on a line: which two of them is undetermined, so the last two are taken.
        ([_vector(0, 1), _vector(1, 1), _vector(2, 1)], _vector(3, 1), [-1.0, 2.0], 0.0),
        # The last two are equal: nothing can be extrapolated between them.
        ([_vector(5, 0), _vector(1, 1), _vector(1, 1)], _vector(1, 2), [-2.0, 3.0], math.sqrt(1 / 2)),
        ([_vector(1, 1), _vector(1, 1)], _vector(1, 1), [-2.0, 3.0], 0.0),
        # Nothing moved at all, and now it does.
        ([_vector(2, 0), _vector(2, 0), _vector(2, 0)], _vector(2, 1), [-2.0, 3.0], 0.5),
        # Nodes a hundredth apart, and a step a hundred times as wide: the weights would magnify rounding 199 times.
        ([_vector(1, 0), _vector(1.01, 0)], _vector(2.01, 0), [-2.0, 3.0], 0.98 / 1.01),
        # One node: repeated.
        ([_vector(3, 4)], _vector(3, 9), [1.0], 1.0),
    ],
)
def test_where_no_fit_is_determined_the_given_weights_are_taken_and_their_error_told(nodes, now, weights, error):
    otherwise = [1.0] if len(nodes) == 1 else [-2.0, 3.0]
    verdict = _fit(nodes, now, otherwise)
    assert list(verdict.weights) == pytest.approx(weights)
    assert verdict.difference == pytest.approx(error, abs=1e-6)


def test_a_residual_of_nothing_has_no_relative_error():
    assert _fit([torch.zeros(2, 2)] * 2, torch.ones(2, 2), [1.0]) == (None, True, (1.0,))


@pytest.mark.parametrize("place", range(WIDTH))
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_sum_that_is_not_finite_is_no_verdict(place: int, value: float):
    sums = [1.0, 0.1, 0.1, 2.0, 1.0, 0.2, 1.0]
    sums[place] = value
    assert fitted([1.0], *sums) == (None, False, ())


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4), min_size=2, max_size=4))
def test_whatever_the_nodes_weights_are_bounded_and_the_error_is_theirs(rows: list[list[float]]):
    *nodes, now = [torch.tensor([row]) for row in rows]
    otherwise = [1.0]
    verdict = _fit(nodes, now, otherwise)
    assert sum(map(abs, verdict.weights)) <= SPAN * (1 + 1e-9)
    size = float(nodes[-1].norm())
    if size < 1e-3:
        return
    used = nodes[-len(verdict.weights) :]
    missed = now - sum(w * node for w, node in zip(verdict.weights, used, strict=True))
    assert verdict.difference == pytest.approx(float(missed.norm()) / size, rel=1e-2, abs=4e-3 * 17 / size)
    repeated = float((now - nodes[-1]).norm()) / size
    if len(verdict.weights) > 1:
        assert verdict.difference <= repeated * 1.001 + 1e-3, "a fit is never worse than to repeat the last"
