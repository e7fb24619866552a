"""Detects a rank that hangs: one record per rank, without a clock or process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raycache.protocol.heartbeat import Heartbeat

__all__ = ["HangDetector", "RankProgress"]

#: Ranks that get no CPU may take at most this many times longer: summing their threads' waits overestimates a bit.
_STARVED_TIMES = 6.0


@dataclass
class RankProgress:
    """What is known about one rank.

    Attributes:
        answered_at, advanced_at: when it last answered, and when it last made progress (seconds of the
            caller's clock).
        answered_wait_s, advanced_wait_s: seconds that its threads had waited for a CPU by then.
        heartbeat: its last one; None before the first.
    """

    answered_at: float
    advanced_at: float
    answered_wait_s: float = 0.0
    advanced_wait_s: float = 0.0
    heartbeat: Heartbeat | None = None

    @property
    def known(self) -> Heartbeat:
        """Its last heartbeat. Only after the ranks have loaded."""
        assert self.heartbeat is not None  # loading has called all of them
        return self.heartbeat


class HangDetector:
    """Distinguishes ranks that hang from ranks that are slow or get no CPU.

    All times are passed in, in seconds of one clock; only the gang's thread writes, any thread may read :attr:`ranks`.

    Args:
        world: number of ranks.
        answer_timeout_s: a rank whose heartbeat takes longer hangs.
        cpu_wait_s: returns the seconds that the threads of a process have waited for a CPU, by process id.
        now: when the ranks were started.

    Attributes:
        ranks: one record per rank, in order.
    """

    def __init__(self, world: int, answer_timeout_s: float, cpu_wait_s: Callable[[int], float], now: float) -> None:
        self._answer_timeout_s, self._cpu_wait_s = answer_timeout_s, cpu_wait_s
        self.ranks = [RankProgress(now, now) for _ in range(world)]

    def introduce(self, heartbeats: list[Heartbeat]) -> None:
        """Record the ranks' process ids; nothing is watched yet."""
        for rank, heartbeat in zip(self.ranks, heartbeats, strict=True):
            rank.heartbeat = heartbeat

    def loaded(self, heartbeats: list[Heartbeat], now: float) -> None:
        """All ranks have loaded the model and answered at ``now``: time-outs count from here."""
        self.introduce(heartbeats)
        for rank in self.ranks:
            rank.answered_at = rank.advanced_at = now

    def work_sent(self, now: float) -> None:
        """Work was sent to all ranks, which were idle: their time to show progress starts."""
        for rank in self.ranks:
            rank.advanced_at, rank.advanced_wait_s = now, rank.answered_wait_s

    def heard(self, index: int, heartbeat: Heartbeat, now: float) -> None:
        """Record the answer of rank ``index``."""
        rank, wait_s = self.ranks[index], self._cpu_wait_s(heartbeat.pid)
        if rank.heartbeat is None or _position(rank.heartbeat) != _position(heartbeat):
            rank.advanced_at, rank.advanced_wait_s = now, wait_s
        rank.heartbeat, rank.answered_at, rank.answered_wait_s = heartbeat, now, wait_s

    def hang(self, now: float, step_timeout_s: float | None) -> str | None:
        """A message about the rank that hangs at ``now``; None if none does.

        Args:
            step_timeout_s: how long working ranks may show no progress; None = idle, then only missing answers count.
        """
        silent_wait_s = [rank.answered_wait_s for rank in self.ranks]
        for index, rank in enumerate(self.ranks):
            silent_s = now - rank.answered_at
            if self._too_long(silent_s, self._answer_timeout_s, silent_wait_s):
                return f"{self._where(index)} has not answered for {silent_s:.1f} s"
        if step_timeout_s is None:
            return None
        # A rank without progress may be waiting for a slower one: the gang hangs only if no rank advances.
        advanced = [rank.advanced_at for rank in self.ranks]
        if self._too_long(now - max(advanced), step_timeout_s, [rank.advanced_wait_s for rank in self.ranks]):
            first = min(advanced)
            return f"{self._where(advanced.index(first))} has made no progress for {now - first:.1f} s"
        return None

    def ages(self, now: float) -> list[float]:
        """Seconds since each rank's last answer."""
        return [now - rank.answered_at for rank in self.ranks]

    def _too_long(self, seconds: float, timeout_s: float, waits_before_s: list[float]) -> bool:
        """Whether ``seconds`` exceed the time-out. Seconds in which ranks waited for a CPU do not count."""
        if seconds <= timeout_s:
            return False
        starved_s = max(
            self._cpu_wait_s(rank.known.pid) - before for rank, before in zip(self.ranks, waits_before_s, strict=True)
        )
        return seconds - min(starved_s, (_STARVED_TIMES - 1) * timeout_s) > timeout_s

    def _where(self, index: int) -> str:
        heartbeat = self.ranks[index].known
        return f"rank {index} (pid {heartbeat.pid}, {heartbeat.phase}, step {heartbeat.step})"


def _position(heartbeat: Heartbeat) -> tuple[tuple[str, ...], str, int, int]:
    """A value that changes when a rank makes progress."""
    return heartbeat.jobs, heartbeat.phase, heartbeat.step, heartbeat.calls
