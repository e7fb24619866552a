"""The time until ranks, or an engine, are available again."""

from __future__ import annotations

import time
from collections import deque

__all__ = ["RELOAD_TIMES", "SERVE_S", "Rebuilds"]

#: New ranks may take this many times longer than earlier ones, if the machine is busier now.
RELOAD_TIMES = 5.0

#: Estimated seconds until Serve notices that a replica has died and starts another process.
SERVE_S = 10.0
#: A rebuild that takes longer than earlier ones is expected to need this share of its time so far in addition.
_OVERDUE = 0.25


class Rebuilds:
    """Estimates the time until new ranks are ready, from the last rebuilds, or from the start if there were none.

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
        """Seconds of a rebuild, including killing the old ranks: the slowest of the last three."""
        return max(self._took, default=self._start_s)

    @property
    def replaced_s(self) -> float:
        """Seconds until another replica is ready in place of this one."""
        return SERVE_S + max(self._start_s, self.expected_s)

    def patience_s(self, first_s: float, least_s: float) -> float:
        """How long ranks may take to load: ``first_s`` the first time, when the model may be downloaded.

        Later there is nothing to download, and a rank may hang while loading.
        """
        return min(first_s, max(least_s, RELOAD_TIMES * self.expected_s)) if self._start_s else first_s

    def started(self, seconds: float) -> None:
        """Ranks are ready; only the first start counts."""
        self._start_s = self._start_s or seconds

    def begins(self) -> None:
        """A rebuild begins, or begins again after a failure."""
        self._began = time.monotonic()

    def ends(self) -> None:
        """New ranks are ready."""
        assert self._began is not None  # a rebuild that ends has begun
        self._took.append(time.monotonic() - self._began)
        self._began = None

    def left_s(self) -> float:
        """Seconds until the ranks are ready; 0 without a rebuild."""
        if self._began is None:
            return 0.0
        since = time.monotonic() - self._began
        return max(self.expected_s - since, _OVERDUE * since, 0.1)
