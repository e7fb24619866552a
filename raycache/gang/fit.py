"""A sum of a few terms, fitted to measurements: costs per term, never negative, robust to single outliers."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Fit"]

#: Number of kinds of jobs kept, and of measurements of each; their median is used.
_KINDS, _EACH = 64, 5
#: A kind's weight shrinks by this factor with each later measurement, down to the minimum weight.
_FADES, _LEAST = 0.98, 0.1
#: Factors tried for the guessed cost of the fixed terms; each doubling counts as this much relative error.
_FIXED, _DOUBLING = [2.0**power for power in range(-3, 7)], 0.02
#: Relative error above which a measurement gets less weight, and the number of refits.
_USUAL, _AGAIN = 0.2, 3
#: A kind with less weight than this is too old to bound others.
_BOUNDS = 0.3
#: Weight of a kind seen in the warm-up only (real jobs: 1), and of the guessed ratios of the terms.
_COLD, _GUESS = 0.1, 0.05


@dataclass
class _Kind:
    cold: bool
    at: int = 0
    measured: deque[tuple[Sequence[float], float]] = field(default_factory=lambda: deque(maxlen=_EACH))

    @property
    def terms(self) -> np.ndarray:
        return np.mean([terms for terms, _ in self.measured], axis=0)

    @property
    def sure(self) -> bool:
        """Whether it was measured more than once outside the warm-up: a single measurement may be an outlier."""
        return not self.cold and len(self.measured) > 1

    @property
    def seconds(self) -> float:
        return statistics.median(seconds for _, seconds in self.measured)


class Fit:
    """Seconds as a sum of terms, each with a cost that is learned.

    A prediction never contradicts the measurements: it is not shorter than that of a kind with less of every term, and
    not longer than that of one with more. So a measured kind is predicted as measured, even if the sum differs,
    and more work never counts as less time.

    Args:
        guess: relative costs of the terms, used as long as no measurement distinguishes them. A single kind
            then fits exactly, at any speed of the machine.
        variable: number of terms, at the end, that grow with the work; the others are fixed.
    """

    def __init__(self, guess: Sequence[float], variable: int) -> None:
        self._guess = np.asarray(guess, float)
        self._fixed = np.arange(len(guess)) < len(guess) - variable
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._count = 0
        self._costs = np.zeros(len(guess))
        self._seen = np.zeros((0, len(guess)))
        self._bounds, self._bounds_s = self._seen, np.zeros(0)

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._kinds)

    def learn(self, kind: Hashable, terms: Sequence[float], seconds: float, cold: bool = False) -> None:
        """Learn that ``kind``, with ``terms``, took ``seconds``; ``cold``: in the warm-up."""
        self._count += 1
        seen = self._kinds.get(kind)
        if cold and seen is not None and not seen.cold:
            return  # a later warm-up of new ranks adds nothing
        if seen is None or (seen.cold and not cold):
            seen = self._kinds[kind] = _Kind(cold)
        seen.at = self._count
        seen.measured.append((terms, max(seconds, 1e-6)))
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)
        self._costs = self._fitted()
        self._seen = np.array([kind.terms for kind in self._kinds.values()])
        bounds = [kind for kind in self._kinds.values() if kind.sure and self._faded(kind) > _BOUNDS]
        self._bounds = np.array([kind.terms for kind in bounds]).reshape(-1, len(self._guess))
        self._bounds_s = np.array([kind.seconds for kind in bounds], float)

    def told(self, terms: Sequence[float]) -> tuple[float | None, float]:
        """Expected seconds, None before any measurement; and the factor by which it exceeds all measured kinds."""
        if not self._kinds:
            return None, 1.0
        wanted = np.asarray(terms, float)
        eps, grows = 1e-9, ~self._fixed
        below = self._bounds_s[(self._bounds <= wanted * (1 + eps)).all(axis=1)].max(initial=0.0)
        above = self._bounds_s[(self._bounds >= wanted * (1 - eps)).all(axis=1)].min(initial=np.inf)
        seconds = min(max(float(wanted @ self._costs), below), above)
        return float(seconds), float((wanted[grows] / np.maximum(self._seen[:, grows], eps)).min(axis=1).min())

    def _faded(self, kind: _Kind) -> float:
        return max(_LEAST, _FADES ** (self._count - kind.at))

    def _fitted(self) -> np.ndarray:
        """Least squares of relative errors, without negative costs, for the most likely factor of the fixed terms."""
        kinds = list(self._kinds.values())
        terms, seconds = np.array([kind.terms for kind in kinds]), np.array([kind.seconds for kind in kinds])
        weights = np.array([self._faded(kind) * (_COLD if kind.cold else 1.0) for kind in kinds]) ** 0.5
        relative, weights = terms / seconds[:, None], weights / weights.max()
        tried = [(times, *self._solved(relative, weights, times)) for times in _FIXED]
        times, costs, _ = min(tried, key=lambda one: one[2] ** 2 + (_DOUBLING * np.log2(one[0])) ** 2)
        # A measurement far from its own prediction was probably disturbed, and gets less weight.
        for _ in range(_AGAIN):
            off = np.abs(relative @ costs - 1)
            costs, _ = self._solved(relative, weights / np.maximum(1.0, off / _USUAL), times)
        return costs

    def _solved(self, relative: np.ndarray, weights: np.ndarray, times: float) -> tuple[np.ndarray, float]:
        """Costs and their error, if the fixed terms cost ``times`` times their guess."""
        from scipy.optimize import nnls  # takes half a second to import, and the ingress never needs it

        guess = np.where(self._fixed, times, 1.0) * self._guess
        rows = relative * guess  # in units of the guess: all costs are equal if it is right
        ratios = _GUESS * rows[weights.argmax()].sum() * (np.eye(len(guess)) - 1 / len(guess))
        costs, error = nnls(np.vstack([rows * weights[:, None], ratios]), np.append(weights, np.zeros(len(guess))))
        return costs * guess, error
