"""Leases of the callers of an engine's jobs, so that no job runs for an ingress that has died."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from raycache.gang.queue import JobHandle

__all__ = ["Leases"]

#: Seconds without a poll after which an ingress counts as dead. It polls the engine every second, but on a busy
#: machine it may be late, and stopping a job by mistake is worse than running one in vain.
_DEAD_S = 20.0
#: If no ingress has polled for this long, the engine itself is being stopped, and finishes its job.
_ASKED_S = 5.0


class Leases:
    """When each ingress last polled, and the jobs it waits for. Thread-safe.

    Ray does not cancel the calls of an actor that dies: the gang would continue with them until their deadlines, but
    nobody reads the answers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._jobs: dict[JobHandle, str] = {}

    def heard(self, caller: str | None) -> None:
        """Record that ``caller`` is alive; None has no effect."""
        if caller is not None:
            with self._lock:
                self._heard[caller] = time.monotonic()

    @contextlib.contextmanager
    def waiting(self, caller: str | None, handle: JobHandle) -> Iterator[None]:
        """While the block runs, ``caller`` waits for ``handle``; None is never considered dead."""
        self.heard(caller)
        if caller is not None:
            with self._lock:
                self._jobs[handle] = caller
        try:
            yield
        finally:
            with self._lock:
                self._jobs.pop(handle, None)

    def orphans(self) -> list[JobHandle]:
        """Jobs whose caller is dead while another is alive, each returned once."""
        with self._lock:
            now = time.monotonic()
            if now - max(self._heard.values(), default=now) > _ASKED_S:
                return []
            dead = {caller for caller, at in self._heard.items() if now - at > _DEAD_S}
            lost = [handle for handle, caller in self._jobs.items() if caller in dead]
            for handle in lost:
                del self._jobs[handle]
            for caller in dead - set(self._jobs.values()):
                del self._heard[caller]
            return lost
