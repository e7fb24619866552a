"""How the number of users changes over a run; with open-loop users that is the arrival rate."""

from __future__ import annotations

from collections.abc import Callable

from locust import LoadTestShape

__all__ = ["Burst", "Constant", "Steps"]

#: Users started or stopped a second: at once, in effect.
_AT_ONCE = 100.0


class Constant(LoadTestShape):
    """``users`` for ``seconds``."""

    def __init__(self, users: int, seconds: float) -> None:
        super().__init__()
        self._users, self._seconds = users, seconds

    def tick(self) -> tuple[int, float] | None:
        return (self._users, _AT_ONCE) if self.get_run_time() < self._seconds else None


class Steps(LoadTestShape):
    """``users`` more every ``hold`` seconds, until ``missed`` says that the goal is, or ``seconds`` are over."""

    def __init__(self, users: int, hold: float, seconds: float, missed: Callable[[float], bool]) -> None:
        super().__init__()
        self._users, self._hold, self._seconds, self._missed = users, hold, seconds, missed

    def tick(self) -> tuple[int, float] | None:
        time = self.get_run_time()
        if time >= self._seconds or (time > self._hold and self._missed(self._hold)):
            return None
        return self._users * (1 + int(time // self._hold)), _AT_ONCE


class Burst(LoadTestShape):
    """``users``, and ``factor`` times as many for ``burst`` seconds out of every ``period``."""

    def __init__(self, users: int, factor: int, period: float, burst: float, seconds: float) -> None:
        super().__init__()
        self._users, self._factor, self._seconds = users, factor, seconds
        self._period, self._burst = period, burst

    def tick(self) -> tuple[int, float] | None:
        time = self.get_run_time()
        if time >= self._seconds:
            return None
        # The burst is in the middle of its period, so that a run begins and ends with the usual load.
        inside = abs(time % self._period - self._period / 2) < self._burst / 2
        return self._users * (self._factor if inside else 1), _AT_ONCE
