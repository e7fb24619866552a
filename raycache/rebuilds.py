"""The time until ranks, or an engine, are available again."""

from __future__ import annotations

import time
from collections import deque

__all__ = ["RELOAD_TIMES", "SERVE_S", "Rebuilds"]

#: New ranks may take so many times longer than those before them, on a machine that is busier now.
RELOAD_TIMES = 5.0

#: Guess of the seconds Serve takes to notice that a replica is gone and to start another process.
SERVE_S = 10.0
#: A rebuild that takes longer than the ones before it is expected to go on for this share of what it has taken.
_OVERDUE = 0.25


class Rebuilds:
    """How long it takes until new ranks are ready: as in the last rebuilds, before there were any as in the start.

    Written by the gang's thread only.
    """

    def __init__(self) -> None:
        self._start_s = 0.0
        self._took: deque[float] = deque(maxlen=3)
        self._began: float | None = None

    @property
    def start_s(self) -> float:
        """Seconds of the start."""
        return self._start_s

    @property
    def expected_s(self) -> float:
        """Seconds of a rebuild, the killing of the old ranks among them: the slowest of the last three."""
        return max(self._took, default=self._start_s)

    @property
    def replaced_s(self) -> float:
        """Seconds until another replica is ready in place of this one."""
        return SERVE_S + max(self._start_s, self.expected_s)

    def patience_s(self, first_s: float, least_s: float) -> float:
        """How long ranks may take to load: ``first_s`` the first time, when the model may be downloaded.

        Later a rank that hangs while it loads is no rarer than another.
        """
        return min(first_s, max(least_s, RELOAD_TIMES * self.expected_s)) if self._start_s else first_s

    def started(self, seconds: float) -> None:
        """Ranks are ready; the first of them count."""
        self._start_s = self._start_s or seconds

    def begins(self) -> None:
        """A rebuild begins, or does once more because it failed."""
        self._began = time.monotonic()

    def ends(self) -> None:
        """New ranks are ready."""
        assert self._began is not None  # what ends has begun
        self._took.append(time.monotonic() - self._began)
        self._began = None

    def left_s(self) -> float:
        """Seconds until the ranks are ready; 0 while none is under way."""
        if self._began is None:
            return 0.0
        since = time.monotonic() - self._began
        return max(self.expected_s - since, _OVERDUE * since, 0.1)
