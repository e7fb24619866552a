"""How the number of users changes over a run; with open-loop users that is the arrival rate.

``loadtests.run`` passes numbers; with locust's own command line and class picker, the shapes read users and run time
from there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from locust import LoadTestShape

__all__ = ["Burst", "Constant", "Shape", "Steps"]

#: Users started or stopped per second: in effect all immediately.
_AT_ONCE = 100.0
#: Default length of a run, seconds.
_LENGTH = 600.0


class Shape(LoadTestShape):
    """A number of users at each time, until ``seconds`` are over.

    Args:
        users: in the normal load; None uses locust's number of users.
        seconds: length of the whole run; None uses locust's run time, or ten minutes.

    Attributes:
        levels: past changes: seconds into the run and the number of users from then on.
    """

    abstract = True
    use_common_options = True

    def __init__(self, users: int | None = None, seconds: float | None = None) -> None:
        super().__init__()
        self._users, self._seconds = users, seconds
        self.levels: list[tuple[float, int]] = []

    @property
    def users(self) -> int:
        """Users in the normal load."""
        return int(self._users or self._told("num_users") or 1)

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return float(self._seconds or self._told("run_time") or _LENGTH)

    @abstractmethod
    def at(self, time: float) -> int:
        """The number of users ``time`` seconds into the run."""

    def over(self, time: float) -> bool:
        """Whether the run is over at ``time``."""
        return time >= self.seconds

    def reset_time(self) -> None:
        super().reset_time()
        self.levels.clear()

    def tick(self) -> tuple[int, float] | None:
        time = self.get_run_time()
        if self.over(time):
            return None
        users = self.at(time)
        if not self.levels or self.levels[-1][1] != users:
            self.levels.append((time, users))
        return users, _AT_ONCE

    def _told(self, name: str) -> Any:
        options = self.runner.environment.parsed_options if self.runner is not None else None
        return getattr(options, name, None)


class Constant(Shape):
    """``users`` for ``seconds``."""

    def at(self, time: float) -> int:
        return self.users


class Steps(Shape):
    """``users`` more every ``hold`` seconds (a sixth of the run), until ``missed`` says that the goal is missed."""

    def __init__(
        self,
        users: int | None = None,
        seconds: float | None = None,
        hold: float | None = None,
        missed: Callable[[float], bool] = lambda hold: False,
    ) -> None:
        super().__init__(users, seconds)
        self._hold, self._missed = hold, missed

    @property
    def hold(self) -> float:
        """Seconds of each step."""
        return self._hold or self.seconds / 6

    def at(self, time: float) -> int:
        return self.users * (1 + int(time // self.hold))

    def over(self, time: float) -> bool:
        return super().over(time) or (time > self.hold and self._missed(self.hold))


class Burst(Shape):
    """``users``, and ``factor`` times as many for ``burst`` seconds out of every ``period`` (half of the run)."""

    def __init__(
        self,
        users: int | None = None,
        seconds: float | None = None,
        factor: int = 10,
        period: float | None = None,
        burst: float | None = None,
    ) -> None:
        super().__init__(users, seconds)
        self._factor, self._period, self._burst = factor, period, burst

    def at(self, time: float) -> int:
        period = self._period or self.seconds / 2
        # The burst is in the middle of its period, so that a run starts and ends with the normal load.
        inside = abs(time % period - period / 2) < (self._burst or period / 5) / 2
        return self.users * (self._factor if inside else 1)
