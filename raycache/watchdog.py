"""How long a rank may show no progress before it counts as hanging: seconds learned from its own steps."""

from __future__ import annotations

import time
from collections import deque

from cache_core.options import CacheOptions
from raycache.job import Job
from raycache.settings import ReliabilitySettings

__all__ = ["Patience"]

#: (width, height, images, cache method): jobs of one kind run the same code on the same shapes.
_Kind = tuple[int, int, int, str]


class Patience:
    """Learned step times by kind of job.

    A kind is known once a job of it has been finished that went beyond the cache's warm-up. Until then any step may be
    the first to compile something, the comparison of the first step after the warm-up above all.

    Args:
        settings: floors and factors.
        compiles: the transformer's blocks are compiled. A batch whose images disagree then meets new shapes, and
            compiles again, at any step.
    """

    def __init__(self, settings: ReliabilitySettings, *, compiles: bool = False) -> None:
        self._settings, self._compiles = settings, compiles
        self._step_s: dict[_Kind, deque[float]] = {}
        self._finished: dict[_Kind, int] = {}
        self._step, self._at = 0, 0.0

    def begin(self) -> None:
        """A job begins."""
        self._step, self._at = 0, 0.0

    def learn(self, job: Job, step: int) -> None:
        """``step`` steps of ``job`` are done. Called more rarely than steps end, so what is learned is an average."""
        now = time.monotonic()
        if step <= self._step:
            return
        if self._step:  # the first step of a job has encoding in it
            self._times(_kind(job)).append((now - self._at) / (step - self._step))
        self._step, self._at = step, now

    def finished(self, job: Job, denoise_s: float) -> None:
        """``job`` ran to its end, its steps in ``denoise_s`` seconds together."""
        kind, steps = _kind(job), job.num_inference_steps
        self._finished[kind] = max(self._finished.get(kind, 0), steps)
        self._times(kind).append(denoise_s / steps)

    def seconds(self, job: Job, phase: str) -> float:
        """Patience with ``job`` in ``phase`` (``encode``, ``denoise``, ``decode``)."""
        settings = self._settings
        learned = self._step_s.get(_kind(job))
        if phase != "denoise" or not learned or not self._known(job):
            return settings.watchdog_first_s
        # The slowest: with a cache most steps are quick, and a computed one is no hang.
        return max(settings.watchdog_floor_s, settings.watchdog_steps * max(learned))

    def _times(self, kind: _Kind) -> deque[float]:
        return self._step_s.setdefault(kind, deque(maxlen=32))

    def _known(self, job: Job) -> bool:
        if self._compiles and len(job.seeds) > 1:
            return False
        return self._finished.get(_kind(job), 0) >= min(job.num_inference_steps, beyond_warmup(job.cache))


def beyond_warmup(options: CacheOptions) -> int:
    """Steps after which a job with these cache options has run all of its code: a comparison, and what follows it."""
    return options.computed_steps + 2


def _kind(job: Job) -> _Kind:
    return job.width, job.height, len(job.seeds), job.cache.type
