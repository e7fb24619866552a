"""How many restarts a gang may have, and within what time."""

from __future__ import annotations

import pytest

from raycache import rebuilds
from raycache.engine_settings import ReliabilitySettings
from raycache.gang import recovery
from raycache.gang.recovery import Restarts
from raycache.gang.worker_group import Fault
from raycache.rebuilds import Rebuilds


class Clock:
    """Stands in for ``time``."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recovery, "time", clock)
    return clock


def test_the_fourth_restart_within_the_window_is_one_too_many(clock: Clock):
    restarts = Restarts(ReliabilitySettings(max_restarts=3, restart_window_s=600))
    for _ in range(3):
        restarts.noticed(Fault("death", "rank 0 died"))
        assert restarts.refused() is None
        clock.now += 100
    assert "max_restarts = 3" in restarts.refused()


def test_restarts_before_the_window_do_not_count(clock: Clock):
    restarts = Restarts(ReliabilitySettings(max_restarts=1, restart_window_s=600))
    for _ in range(5):
        restarts.noticed(Fault("hang", "rank 1 hangs"))
        assert restarts.refused() is None
        clock.now += 601
    assert (restarts.count, restarts.causes) == (5, {"hang": 5})


def test_times_are_counted_from_the_fault(clock: Clock):
    restarts = Restarts(ReliabilitySettings())
    assert restarts.drawn() is None, "no fault, no image after it"
    restarts.noticed(Fault("death", "rank 0 died"))
    clock.now += 1
    restarts.refused()
    clock.now += 2
    assert restarts.recovered({"model": 2.0}) == 3
    clock.now += 4
    assert restarts.drawn() == 7
    assert restarts.drawn() is None, "only the first image is the next one"
    assert (restarts.last.killed_s, restarts.last.ready_s, restarts.last.image_s) == (1, 3, 7)


def test_new_ranks_are_expected_when_those_before_them_were_ready(monkeypatch: pytest.MonkeyPatch, clock: Clock):
    """It was 1 s, whatever a rebuild takes, as soon as one took longer than the start."""
    monkeypatch.setattr(rebuilds, "time", clock)
    times = Rebuilds()
    times.started(20.0)
    assert (times.left_s(), times.expected_s, times.replaced_s) == (0.0, 20.0, 30.0)
    times.begins()
    clock.now += 5
    assert times.left_s() == 15
    clock.now += 35
    assert times.left_s() == 10, "overdue: a quarter of what it has taken"
    times.ends()
    assert (times.left_s(), times.expected_s) == (0.0, 40.0)
    times.begins()
    clock.now += 30
    times.begins()  # it failed, and is tried anew
    assert times.left_s() == 40
    assert times.patience_s(1800.0, 120.0) == 200
    assert Rebuilds().patience_s(1800.0, 120.0) == 1800, "the model may have to be downloaded"
