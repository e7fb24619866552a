"""The state of a gang, and of a job: one value each, instead of flags that could contradict each other."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["GangLifecycle", "GangState", "HandleState"]


class GangState(StrEnum):
    """STARTING -> READY <-> RECOVERING; CLOSING while its thread ends; BROKEN is final, also after a shutdown."""

    STARTING = "starting"
    READY = "ready"
    RECOVERING = "recovering"
    CLOSING = "closing"
    BROKEN = "broken"


class HandleState(StrEnum):
    """QUEUED -> RUNNING <-> WAITING_FOR_RANKS, after a fault. Only its future says whether it has ended."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_FOR_RANKS = "waiting_for_ranks"


class GangLifecycle:
    """A gang's state, and why it is broken. Written by the gang's thread only; any thread may read.

    Attributes:
        why: the reason why it is broken; otherwise empty.
    """

    def __init__(self) -> None:
        self._state, self.why = GangState.STARTING, ""

    @property
    def state(self) -> GangState:
        """The current state."""
        return self._state

    @property
    def ready(self) -> bool:
        """Ranks are loaded, and no recovery is in progress."""
        return self._state is GangState.READY

    @property
    def broken(self) -> bool:
        """The gang has given up: it runs no more jobs."""
        return self._state is GangState.BROKEN

    def enter(self, state: GangState) -> None:
        """Change to ``state``, unless the gang is broken: it stays broken."""
        if not self.broken:
            self._state = state

    def break_down(self, why: str) -> None:
        """Mark the gang as broken; only the first reason is kept."""
        self.why = self.why or why  # set before the state: other threads read it as soon as the state changes
        self._state = GangState.BROKEN
