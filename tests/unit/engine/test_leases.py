"""Whose jobs an engine draws: those of a dead ingress are dropped, those of a silent world are not."""

import pytest

from raycache.engine import leases as module
from raycache.engine.leases import Leases


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def listening(leases: Leases, clock: Clock, seconds: int, *names: str) -> list[object]:
    """What is orphaned while ``names`` ask each second."""
    lost = []
    for _ in range(seconds):
        clock.now += 1
        for name in names:
            leases.heard(name)
        lost += leases.orphans()
    return lost


def test_a_dead_ingress_leaves_orphans_and_a_living_one_none(clock):
    leases = Leases()
    with leases.waiting("old", "its job"), leases.waiting("new", "another"), leases.waiting(None, "by handle"):
        assert listening(leases, clock, 19, "new") == []
        assert listening(leases, clock, 3, "new") == ["its job"], "once"


def test_an_ended_job_is_nobodys(clock):
    leases = Leases()
    with leases.waiting("old", "its job"):
        pass
    assert listening(leases, clock, 40, "new") == []


def test_an_engine_that_nobody_asks_finishes_its_job(clock):
    """It is being replaced: Serve calls it no more, but its answers are still waited for."""
    leases = Leases()
    with leases.waiting("old", "its job"):
        assert listening(leases, clock, 100) == []


def test_a_job_ordered_long_after_its_ingress_was_last_heard_is_awaited(clock):
    leases = Leases()
    leases.heard("old")
    listening(leases, clock, 100, "new")
    with leases.waiting("old", "its job"):
        assert listening(leases, clock, 19, "new") == []
