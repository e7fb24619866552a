"""How long a rank may show no progress before it counts as hanging: learned from jobs, for every phase."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cache_core.options import CacheOptions
from raycache.engine_settings import ReliabilitySettings
from raycache.gang.costs import Costs, work_of
from raycache.protocol.job import Job
from raycache.rebuilds import RELOAD_TIMES
from raycache.size import Size

__all__ = ["StepTimeouts", "beyond_warmup"]

#: (size, images, cache method): calls of one kind run the same code on the same shapes.
_Kind = tuple[Size, int, str]


class StepTimeouts:
    """max(floor, k x the seconds for which the phase shows no progress), where those are predicted for the job at hand.

    A size that was never run is no reason to wait longer: what others took says enough
    (:mod:`raycache.gang.costs`), and the warm-up has run some. Two waits are not predicted: a rank that compiles, which
    it says, and the first jobs of new ranks, which may take several times what those of the ranks before them took;
    before there were any, nothing is known.

    Args:
        settings: floors and factors.
        costs: what the gang has learned, in earlier lives too.
    """

    def __init__(self, settings: ReliabilitySettings, costs: Costs | None = None) -> None:
        self._settings = settings
        self._costs = Costs() if costs is None else costs
        self._call_s: dict[_Kind, deque[float]] = {}

    def called(self, jobs: Sequence[Job], seconds: float) -> None:
        """A call of the transformer with the rows of all these jobs took so long."""
        self._times(_kind(jobs)).append(seconds)

    def finished(self, job: Job, denoise_s: float) -> None:
        """``job`` ran to its end, its steps in ``denoise_s`` seconds together."""
        self._times(_kind([job])).append(denoise_s / job.num_inference_steps)

    def seconds(self, jobs: Sequence[Job], phase: str, *, cold: bool = False) -> float:
        """How long ``jobs`` may show no progress in ``phase``: that of rank 0, which is idle between two ticks.

        Args:
            jobs: that share what is done; none if that is not known.
            cold: a job of the warm-up.
        """
        settings = self._settings
        if phase == "compile":
            return settings.watchdog_first_s
        if cold:
            took = self._costs.cold_s(phase)
            return settings.watchdog_first_s if took is None else max(settings.watchdog_floor_s, RELOAD_TIMES * took)
        if not jobs:
            return settings.watchdog_floor_s
        if phase == "loading":  # a LoRA, from whatever disk it is on
            return settings.watchdog_first_s
        # A call that is shared takes less than its jobs' own would one after the other.
        expected = [self._costs.phase_s(work_of(job), phase) or 0.0 for job in jobs]
        # The slowest: with a cache most steps are quick, and a computed one is no hang.
        slowest = self._call_s.get(_kind(jobs), ()) if phase == "denoise" else ()
        seconds = max(sum(expected), *slowest, 0.0)
        if not seconds:
            return settings.watchdog_first_s
        return max(settings.watchdog_floor_s, settings.watchdog_steps * seconds)

    def _times(self, kind: _Kind) -> deque[float]:
        return self._call_s.setdefault(kind, deque(maxlen=32))


def beyond_warmup(options: CacheOptions) -> int:
    """Steps after which a job with these cache options has run all of its code: a comparison, and what follows it."""
    return options.computed_steps + 2


def _kind(jobs: Sequence[Job]) -> _Kind:
    first = jobs[0]
    return first.size, sum(len(job.images) for job in jobs), first.cache.type
