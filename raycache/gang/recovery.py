"""How often a gang may be rebuilt, and how long each time took."""

from __future__ import annotations

import time

from raycache.engine_settings import ReliabilitySettings
from raycache.gang.queue import JobHandle
from raycache.gang.worker_group import Fault
from raycache.protocol.job import Recovery
from raycache.protocol.job_errors import GangRestarting, JobFailed

__all__ = ["ATTEMPTS", "Restarts", "retry_decision"]

#: A job that ran alone this many times while ranks broke is probably the cause.
ATTEMPTS = 2


def retry_decision(handle: JobHandle, fault: Fault, *, took_s: float, load_s: float) -> Exception | None:
    """How a job ends after ``fault``; None: it is rerun (an image is a function of request and seed).

    Args:
        took_s: seconds since it started; load_s: seconds until new ranks will be ready.
    """
    if (ended := handle.end_if_unwanted()) is not None:
        return ended
    if handle.faults["alone"] == ATTEMPTS:
        # The client must not be told to send it again.
        return JobFailed(f"{fault}; it was tried {handle.faults.total()} times")
    if handle.late(time.monotonic() + load_s + took_s):
        return GangRestarting(f"{fault}; there is no time to rerun it before its deadline", retry_after_s=load_s)
    return None


class Restarts:
    """Counts restarts in a moving window. Written by the gang's thread only."""

    def __init__(self, limits: ReliabilitySettings) -> None:
        self._limits = limits
        self._at: list[float] = []
        self._noticed = 0.0
        self.count = 0
        self.causes: dict[str, int] = {}
        self.faults: list[str] = []
        self.last: Recovery | None = None

    def noticed(self, fault: Fault) -> None:
        """Record ``fault``."""
        self._noticed = time.monotonic()
        self.faults.append(f"{fault.kind}: {fault}")
        self.last = Recovery(fault.kind, time.time())

    def refused(self) -> str | None:
        """Count one more restart of ranks that have ended; return why it is not allowed, if there were too many."""
        now, limits = time.monotonic(), self._limits
        if self.last is not None and self.last.killed_s is None:
            self.last.killed_s = now - self._noticed
        self.count += 1
        if self.last is not None:
            self.causes = {**self.causes, self.last.kind: self.causes.get(self.last.kind, 0) + 1}
        self._at = [at for at in self._at if at > now - limits.restart_window_s] + [now]
        if len(self._at) <= limits.max_restarts:
            return None
        return (
            f"{len(self._at) - 1} restarts within {limits.restart_window_s:g} s "
            f"(reliability.max_restarts = {limits.max_restarts})"
        )

    def recovered(self, stages: dict[str, float]) -> float:
        """New ranks are ready; ``stages``: seconds by stage. Returns seconds since the fault was noticed."""
        assert self.last is not None  # ranks are rebuilt only after a fault
        self.last.ready_s, self.last.stages = (seconds := time.monotonic() - self._noticed), dict(stages)
        return seconds

    def drawn(self) -> float | None:
        """A job is done; if it is the first since a fault, return the seconds since that was noticed."""
        if self.last is None or self.last.image_s is not None:
            return None
        self.last.image_s = time.monotonic() - self._noticed
        return self.last.image_s
