"""What transformer calls, encoding and decoding cost the gang, and how much memory jobs hold: learned from ticks.

The seconds of a call are a sum of terms (:mod:`raycache.gang.fit`): fixed, per share of blocks computed, per token, per
pair of tokens. So any number of rows of any size can be predicted, also before such a call was made.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Sequence

from raycache.gang.fit import Fit
from raycache.gang.schedule import JobState

__all__ = ["ONE_PROMPT", "LearnedCallCosts", "decode_terms"]

# Guessed costs of the terms relative to one token, until measurements distinguish them; see Fit. A step launches 57
# blocks, an attention score is 1/18000 of a token's matrix products (hidden size 3072); FLUX's decoder is similar.
_STEP = (64.0, 256.0, 1.0, 1 / 18000)
_DECODE = (256.0, 1.0, 1 / 18000)
#: Terms of encoding, which takes equally long for every job: one prompt, padded to a fixed length.
ONE_PROMPT = (1.0,)
#: Maximum number of predictions cached until something new is learned.
_REMEMBERED = 4096


class LearnedCallCosts:
    """The :class:`~raycache.gang.schedule.CallCosts` of a gang. Thread-safe.

    Before anything is learned all costs are 0: jobs then run in order of arrival, and none is joined.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encode, self._step, self._decode = Fit(ONE_PROMPT, 1), Fit(_STEP, 2), Fit(_DECODE, 2)
        self._bytes: dict[Hashable, Fit] = {}  # by :attr:`JobState.joins`, which includes the method
        self._text_tokens = 0  # in each row of a call, but not decoded
        self._ranks = 1  # over which the rows of a job are distributed for decoding
        self._between_s = 0.0  # time of a job outside of these phases
        self._most = math.inf  # maximum tokens of a call, over all rows
        self._told: dict[Hashable, float] = {}

    def called(self, jobs: Sequence[JobState], seconds: float, shares: Sequence[float] = ()) -> None:
        """Learn that a call with the rows of these jobs took ``seconds``, without previews.

        Args:
            shares: share of the blocks that each job computed in it; empty: as expected.
        """
        terms = _call_terms(jobs, shares or [job.share for job in jobs])
        kind = (jobs[0].shape, sum(job.rows for job in jobs), round(terms[1], 1))
        self._learn(self._step, kind, terms, seconds)

    def started(self, job: JobState, seconds: float) -> None:
        """Learn that encoding took ``seconds``."""
        self._learn(self._encode, 1, ONE_PROMPT, seconds)

    def ended(self, job: JobState, seconds: float) -> None:
        """Learn that decoding took ``seconds``."""
        self._learn(self._decode, (job.shape, job.rows), self._end_terms(job), seconds)

    def held(self, job: JobState, size: float) -> None:
        """Learn that a job held at most ``size`` bytes."""
        fit = self._bytes.setdefault(job.joins, Fit((1.0, 1.0), 1))
        self._learn(fit, (job.shape, job.rows), _bytes_terms(job), size)

    def out_of_memory(self, jobs: Sequence[JobState]) -> None:
        """A call with the rows of these jobs ran out of memory: from now on calls have at most half its tokens."""
        tokens = sum(job.rows * job.tokens for job in jobs)
        with self._lock:
            self._most = min(self._most, tokens / 2)

    def call_s(self, jobs: Sequence[JobState]) -> float:
        """Expected seconds of one call with the rows of all these jobs; previews are spread over a job's calls."""
        key = ("call", *[(job.rows, job.tokens, job.share) for job in jobs])
        seconds = self._tell(key, self._step, lambda: _call_terms(jobs, [job.share for job in jobs]))
        return seconds + sum([self._previews_s(job) for job in jobs if job.previews])

    def start_s(self, job: JobState) -> float:
        """Expected seconds of encoding, and of everything else that is neither a call nor decoding."""
        return self._between_s + self._tell("start", self._encode, lambda: ONE_PROMPT)

    def end_s(self, job: JobState) -> float:
        """Expected seconds of decoding."""
        return self._tell(("end", job.rows, job.tokens), self._decode, lambda: self._end_terms(job))

    def bytes_of(self, job: JobState) -> float:
        """Expected bytes that the job holds while active; for an unknown method, the most that others would."""
        fits = [self._bytes[job.joins]] if job.joins in self._bytes else list(self._bytes.values())
        keys = ((("bytes", id(fit), job.rows, job.tokens), fit) for fit in fits)
        return max((self._tell(key, fit, lambda: _bytes_terms(job)) for key, fit in keys), default=0.0)

    def max_rows(self, job: JobState) -> float:
        """Maximum rows of a call of this job's shape, at least one."""
        if math.isinf(self._most):
            return self._most
        return max(1.0, self._most // job.tokens)

    def _previews_s(self, job: JobState) -> float:
        """Seconds of previews per call; they have half the width and height."""
        key, tokens = ("preview", job.rows, job.tokens), 0.25 * (job.tokens - self._text_tokens)
        return job.previews / job.calls * self._tell(key, self._decode, lambda: decode_terms(job.rows, tokens))

    def _end_terms(self, job: JobState) -> tuple[float, float, float]:
        return decode_terms(self._longest(job.rows), job.tokens - self._text_tokens)

    def _longest(self, rows: int) -> int:
        """The most rows that one rank decodes."""
        return math.ceil(rows / self._ranks)

    def _learn(self, fit: Fit, kind: Hashable, terms: Sequence[float], measured: float) -> None:
        with self._lock:
            fit.learn(kind, terms, measured)
            self._told.clear()

    def _tell(self, key: Hashable, fit: Fit, terms: Callable[[], Sequence[float]]) -> float:
        with self._lock:
            if (told := self._told.get(key)) is None:
                if len(self._told) >= _REMEMBERED:
                    self._told.clear()
                told = self._told[key] = fit.told(terms())[0] or 0.0
        return told


def _call_terms(jobs: Sequence[JobState], shares: Sequence[float]) -> tuple[float, float, float, float]:
    """A block is launched if any row needs it, and computes only the rows that do."""
    rows = sum(job.rows * job.tokens * share for job, share in zip(jobs, shares, strict=True))
    return 1.0, max(shares), rows, rows * jobs[0].tokens


def decode_terms(rows: int, tokens: float) -> tuple[float, float, float]:
    """Rows are decoded one after the other."""
    return rows, rows * tokens, rows * tokens**2


def _bytes_terms(job: JobState) -> tuple[float, float]:
    return 1.0, job.rows * job.tokens
