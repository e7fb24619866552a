"""How long a rank may show no progress before it counts as hanging: seconds learned from its own steps."""

from __future__ import annotations

import statistics
import time
from collections import deque

from raycache.job import Job
from raycache.rank import Pulse
from raycache.settings import ReliabilitySettings

__all__ = ["Patience"]


class Patience:
    """Learned step times by shape (width, height, batch)."""

    def __init__(self, settings: ReliabilitySettings) -> None:
        self._settings = settings
        self._seconds: dict[tuple[int, int, int], deque[float]] = {}
        self._job: Job | None = None
        self._step, self._at = 0, 0.0

    def begin(self, job: Job) -> None:
        """A job begins."""
        self._job, self._step, self._at = job, 0, 0.0

    def learn(self, job: Job, pulse: Pulse) -> None:
        """Take note of the steps that a pulse shows done; pulses are coarser than steps, so it is an average."""
        now = time.monotonic()
        if pulse.job != job.id or pulse.phase != "denoise" or pulse.step <= self._step:
            return
        if self._step:  # the first step of a job counts encoding, and compiling, in
            each = (now - self._at) / (pulse.step - self._step)
            self._seconds.setdefault(job.shape, deque(maxlen=32)).append(each)
        self._step, self._at = pulse.step, now

    def seconds(self, pulse: Pulse, *, failed: bool) -> float:
        """Patience for the job that runs; short once a rank has failed, for the others may wait for it."""
        settings = self._settings
        if failed:
            return settings.watchdog_floor_s
        learned = self._seconds.get(self._job.shape)
        if pulse.phase != "denoise" or not learned:
            return settings.watchdog_first_s
        return max(settings.watchdog_floor_s, settings.watchdog_steps * statistics.median(learned))

    def forget(self) -> None:
        """New ranks: the first step of every shape may compile again."""
        self._seconds.clear()
