"""Leases of the callers of an engine's jobs, so that no job runs for an ingress that is gone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from raycache.gang.queue import JobHandle

__all__ = ["Leases"]

#: Seconds without a word after which an ingress counts as dead. It polls the engine each second, but a
#: busy machine may keep it from that for a while, and a job stopped by mistake is worse than one run in vain.
_DEAD_S = 20.0
#: Where not one of them has said a word for so long it is the engine that is being stopped, and finishes its job.
_ASKED_S = 5.0


class Leases:
    """When each ingress was last heard, and what it waits for. Thread-safe.

    Ray does not cancel the calls of an actor that dies: nobody reads their answers, and the gang would go on with
    them until their deadlines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        self._jobs: dict[JobHandle, str] = {}

    def heard(self, caller: str | None) -> None:
        """``caller`` lives; None says nothing."""
        if caller is not None:
            with self._lock:
                self._heard[caller] = time.monotonic()

    @contextlib.contextmanager
    def waiting(self, caller: str | None, handle: JobHandle) -> Iterator[None]:
        """While the block runs, ``caller`` waits for ``handle``; nobody is known to stop waiting where it is None."""
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
        """Jobs whose caller is dead while another lives, each told once."""
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
