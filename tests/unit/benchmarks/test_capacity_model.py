"""The arithmetic behind docs/capacity.md."""

from __future__ import annotations

import math

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


def test_one_gang_against_the_exact_mean():
    """M/D/1: the mean wait is rho S / (2 (1 - rho)); the approximation is exact there."""
    assert wait_p95(0.05, 10.0, 1) == pytest.approx(math.log(20) * 0.5 * 10 / (2 * 0.5))


@given(st.floats(0.5, 120), st.floats(1, 100), st.floats(0.5, 50))
def test_the_gangs_found_are_enough_and_one_less_is_not(per_minute, goal, service):
    gangs = gangs_needed(per_minute, goal, service)
    if gangs is None:
        assert service >= goal
        return
    assert service + wait_p95(per_minute / 60, service, gangs) <= goal
    if gangs > 1:
        assert service + wait_p95(per_minute / 60, service, gangs - 1) > goal
