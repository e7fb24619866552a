"""What transformer calls, encoding and decoding cost the gang, and how much memory jobs hold: learned from ticks.

Seconds of a call are a sum of terms (:mod:`raycache.gang.fit`): fixed, per share of blocks computed, per token, per
pair of tokens. So any number of rows of any size is predicted, also before it was joined.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from raycache.gang.fit import Fit
from raycache.gang.schedule import JobState

__all__ = ["LearnedCallCosts"]

# Guessed beside one token while nothing tells the terms apart, as in raycache.gang.costs.
_CALL = (64.0, 256.0, 1.0, 1 / 18000)
_DECODE = (256.0, 1.0, 1 / 18000)
_ENCODE = (1.0,)


class LearnedCallCosts:
    """The :class:`~raycache.gang.schedule.CallCosts` of a gang. Not thread-safe: the gang's thread owns it.

    Before anything was learned everything costs nothing: jobs are then drawn in order of arrival, and none is joined.
    """

    def __init__(self) -> None:
        self._call, self._decode, self._encode = Fit(_CALL, 2), Fit(_DECODE, 2), Fit(_ENCODE, 1)
        self._bytes = Fit((1.0, 1.0), 1)
        self._most = math.inf  # tokens over all rows that a call may have
        self._told: dict[Hashable, float] = {}

    def called(self, jobs: Sequence[JobState], seconds: float, shares: Sequence[float] = ()) -> None:
        """A call with the rows of these jobs took so long.

        Args:
            shares: of the blocks, that each job computed in it; empty: as expected.
        """
        terms = _call_terms(jobs, shares or [job.share for job in jobs])
        kind = (jobs[0].shape, sum(job.rows for job in jobs), round(terms[1], 1))
        self._learn(self._call, kind, terms, seconds)

    def started(self, job: JobState, seconds: float) -> None:
        """Encoding took so long."""
        self._learn(self._encode, (), (1.0,), seconds)

    def ended(self, job: JobState, seconds: float) -> None:
        """Decoding took so long."""
        self._learn(self._decode, (job.shape, job.rows), _decode_terms(job), seconds)

    def held(self, job: JobState, size: float) -> None:
        """A job held so many bytes at most."""
        self._learn(self._bytes, (job.shape, job.rows, job.joins), _bytes_terms(job), size)

    def out_of_memory(self, jobs: Sequence[JobState]) -> None:
        """A call with the rows of these jobs did not fit: half of it is what such calls may have from now on."""
        tokens = sum(job.rows * job.tokens for job in jobs)
        self._most = min(self._most, tokens / 2)

    def call_s(self, jobs: Sequence[JobState]) -> float:
        """Expected seconds of one call with the rows of all these jobs."""
        key = ("call", tuple((job.rows, job.tokens, job.share) for job in jobs))
        return self._tell(key, self._call, _call_terms(jobs, [job.share for job in jobs]))

    def start_s(self, job: JobState) -> float:
        """Expected seconds of encoding."""
        return self._tell("start", self._encode, (1.0,))

    def end_s(self, job: JobState) -> float:
        """Expected seconds of decoding."""
        return self._tell(("end", job.rows, job.tokens), self._decode, _decode_terms(job))

    def bytes_of(self, job: JobState) -> float:
        """Expected bytes that the job holds while it is active."""
        return self._tell(("bytes", job.rows, job.tokens), self._bytes, _bytes_terms(job))

    def max_rows(self, job: JobState) -> float:
        """Rows that a call of this job's shape may have: one always."""
        if math.isinf(self._most):
            return self._most
        return max(1.0, self._most // job.tokens)

    def _learn(self, fit: Fit, kind: Hashable, terms: Sequence[float], measured: float) -> None:
        fit.learn(kind, terms, measured)
        self._told.clear()

    def _tell(self, key: Hashable, fit: Fit, terms: Sequence[float]) -> float:
        if key not in self._told:
            self._told[key] = fit.told(terms)[0] or 0.0
        return self._told[key]


def _call_terms(jobs: Sequence[JobState], shares: Sequence[float]) -> tuple[float, float, float, float]:
    """A block is launched if any row needs it, and then computes those rows only."""
    rows = sum(job.rows * job.tokens * share for job, share in zip(jobs, shares, strict=True))
    return 1.0, max(shares), rows, rows * jobs[0].tokens


def _decode_terms(job: JobState) -> tuple[float, float, float]:
    rows = job.rows * job.tokens
    return 1.0, rows, rows * job.tokens


def _bytes_terms(job: JobState) -> tuple[float, float]:
    return 1.0, job.rows * job.tokens
