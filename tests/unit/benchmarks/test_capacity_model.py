"""The arithmetic behind docs/capacity.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity_model import FLUX_DEV_1024, L20, PUBLISHED, Picture, gangs_needed, seconds, wait_p95


def test_predictions_lie_near_what_was_published():
    for point in PUBLISHED:
        predicted = seconds(FLUX_DEV_1024, L20, point.ranks, computed=point.computed, factor=point.factor)
        assert predicted == pytest.approx(point.published_s, rel=0.2), point.name


def test_one_rank_exchanges_nothing():
    assert FLUX_DEV_1024.exchanged_gb(1) == 0
    assert seconds(FLUX_DEV_1024, L20, 1) == pytest.approx(24.85)


def test_the_volume_counted_by_hand():
    """8 tokens of 4 channels, 2 bytes each, on 2 ranks: 32 bytes on each, half of them for the other; 4 tensors."""
    picture = Picture(tokens=8, width=4, blocks=3, steps=5, serial_s=0)
    assert picture.exchanged_gb(2) == pytest.approx(3 * 5 * 4 * 16 / 1e9)


def test_ulysses_buys_latency_and_not_throughput():
    times = {ranks: seconds(FLUX_DEV_1024, L20, ranks) for ranks in (1, 2, 4)}
    assert times[1] > times[2] > times[4]
    per_gpu = {ranks: 1 / (ranks * time) for ranks, time in times.items()}
    assert per_gpu[1] > per_gpu[2] > per_gpu[4]


@given(st.floats(0.1, 60), st.integers(1, 20), st.floats(0.01, 0.99))
def test_waits_grow_with_load_and_shrink_with_gangs(service, gangs, load):
    rate = load * gangs / service
    assert 0 <= wait_p95(rate, service, gangs) < math.inf
    assert wait_p95(rate, service, gangs + 1) <= wait_p95(rate, service, gangs)
    assert wait_p95(rate / 2, service, gangs) <= wait_p95(rate, service, gangs)


def _exact_p95(load: float) -> float:
    """One gang of service time 1: Erlang's own distribution (1909), ``P(W <= x) = (1 - rho) sum_k (rho (k - x))^k /
    k! exp(rho (x - k))`` over ``k <= x``, searched for 95 %. Exact while its alternating terms are small."""

    def served(x: float) -> float:
        terms = ((load * (k - x)) ** k / math.factorial(k) * math.exp(load * (x - k)) for k in range(int(x) + 1))
        return (1 - load) * math.fsum(terms)

    low, high = 0.0, 15.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if served(middle) < 0.95 else (low, middle)
    return high


def _simulated_p95(load: float, gangs: int, requests: int = 200_000) -> float:
    """First come, first served by ``gangs`` of service time 1: whoever takes a request is free one later."""
    arrivals = np.cumsum(np.random.default_rng(7).exponential(1 / (load * gangs), requests)).tolist()
    free, waits = [0.0] * gangs, []  # requests are taken in turn, for all take equally long
    for k, arrival in enumerate(arrivals):
        start = max(arrival, free[k % gangs])
        free[k % gangs] = start + 1
        waits.append(start - arrival)
    return float(np.quantile(waits[requests // 20 :], 0.95))


def test_the_judges_agree():
    """And know the number that was once believed to be 15 s: half loaded, ten seconds each, 5 % wait over 20.6 s."""
    assert 10 * _exact_p95(0.5) == pytest.approx(20.55, abs=0.05)
    for load in (0.3, 0.5, 0.7):
        assert _simulated_p95(load, 1) == pytest.approx(_exact_p95(load), rel=0.03)


@pytest.mark.parametrize("load", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_one_gang_against_the_exact_distribution(load):
    """Never too hopeful by more than 1 %, and less than a third of an image too long."""
    exact = 10 * _exact_p95(load)
    assert 0.99 * exact <= wait_p95(load / 10, 10.0, 1) <= exact + 0.3 * 10


@pytest.mark.slow
@pytest.mark.parametrize("gangs", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7, 0.9])
def test_several_gangs_against_a_simulation(gangs, load):
    assert 10 * _simulated_p95(load, gangs) == pytest.approx(
        wait_p95(load * gangs / 10, 10.0, gangs), abs=0.3 * 10 / gangs + 0.05 * 10 * _simulated_p95(load, gangs)
    )


def test_the_worked_example():
    """docs/capacity.md: twelve a minute, 12.49 s each, within 20 s. Four gangs miss it, by the simulation too."""
    alone = 12.49
    assert gangs_needed(12, 20, alone) == 5
    assert alone * (1 + _simulated_p95(12 / 60 * alone / 4, 4)) > 20
    assert alone * (1 + _simulated_p95(12 / 60 * alone / 5, 5)) < 20


def test_nobody_waits_where_gangs_are_idle():
    """Twenty gangs, one of them busy."""
    assert wait_p95(0.1, 10.0, 20) == 0.0


@given(st.floats(0.5, 120), st.floats(1, 100), st.floats(0.5, 50))
def test_the_gangs_found_are_enough_and_one_less_is_not(per_minute, goal, service):
    gangs = gangs_needed(per_minute, goal, service)
    if gangs is None:
        assert service >= goal
        return
    assert service + wait_p95(per_minute / 60, service, gangs) <= goal
    if gangs > 1:
        assert service + wait_p95(per_minute / 60, service, gangs - 1) > goal
