"""The state of a gang, and of a job: one value each, instead of flags that could contradict each other."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["GangLifecycle", "GangState", "HandleState"]


class GangState(StrEnum):
    """STARTING -> READY <-> RECOVERING; CLOSING while its thread ends; BROKEN is the last, also after a shutdown."""

    STARTING = "starting"
    READY = "ready"
    RECOVERING = "recovering"
    CLOSING = "closing"
    BROKEN = "broken"


class HandleState(StrEnum):
    """QUEUED -> RUNNING <-> WAITING_FOR_RANKS, after a fault. Whether it is over is told by its future alone."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_FOR_RANKS = "waiting_for_ranks"


class GangLifecycle:
    """A gang's state, and why it is broken. Written by the gang's thread only; anyone may read.

    Attributes:
        why: it is broken; empty while it is not.
    """

    def __init__(self) -> None:
        self._state, self.why = GangState.STARTING, ""

    @property
    def state(self) -> GangState:
        """Where the gang stands."""
        return self._state

    @property
    def ready(self) -> bool:
        """Ranks are loaded, and no recovery is under way."""
        return self._state is GangState.READY

    @property
    def broken(self) -> bool:
        """It runs nothing more."""
        return self._state is GangState.BROKEN

    def enter(self, state: GangState) -> None:
        """The gang is in ``state`` now, unless it is broken, which it stays."""
        if not self.broken:
            self._state = state

    def break_down(self, why: str) -> None:
        """It runs nothing more; only the first reason counts."""
        self.why = self.why or why  # before the state, which tells other threads to read it
        self._state = GangState.BROKEN
