"""Where a gang stands is one value, and broken is its last."""

from __future__ import annotations

import pytest

from raycache.gang.states import GangLifecycle, GangState


def test_a_gang_becomes_ready_recovers_and_closes():
    lifecycle = GangLifecycle()
    assert (lifecycle.state, lifecycle.ready, lifecycle.broken) == (GangState.STARTING, False, False)
    for state in (GangState.READY, GangState.RECOVERING, GangState.READY, GangState.CLOSING):
        lifecycle.enter(state)
        assert (lifecycle.state, lifecycle.ready) == (state, state is GangState.READY)
    assert (lifecycle.broken, lifecycle.why) == (False, "")


@pytest.mark.parametrize("later", list(GangState))
def test_broken_is_for_good_and_for_its_first_reason(later: GangState):
    lifecycle = GangLifecycle()
    lifecycle.break_down("too many restarts")
    lifecycle.enter(later)
    assert lifecycle.broken
    lifecycle.break_down("shut down")
    assert (lifecycle.broken, lifecycle.ready, lifecycle.why) == (True, False, "too many restarts")
