"""A sum of a few terms, fitted to measurements: costs per term, never negative, robust to single outliers."""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Fit"]

#: Kinds of jobs that are remembered, and measurements of each: their median is what counts.
_KINDS, _EACH = 64, 5
#: Weight of a kind that was measured so many measurements ago shrinks by this factor each, down to the least weight.
_FADES, _LEAST = 0.98, 0.1
#: What the fixed terms may cost beside what is guessed, each doubling at the price of so much relative error.
_FIXED, _DOUBLING = [2.0**power for power in range(-3, 7)], 0.02
#: Relative error beyond which a measurement is believed less.
_USUAL, _AGAIN = 0.2, 3
#: Beyond this a kind is too old to bound others.
_BOUNDS = 0.3
#: Weight of a kind seen in the warm-up only, beside one of real jobs, and of the guessed ratios of the terms.
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
        """Whether it was measured more than once, and not in the warm-up: anything may happen once."""
        return not self.cold and len(self.measured) > 1

    @property
    def seconds(self) -> float:
        return statistics.median(seconds for _, seconds in self.measured)


class Fit:
    """Seconds as a sum of terms, each with a cost that is learned.

    A prediction never contradicts what was measured: it is no shorter than that of a kind with less of every term, and
    no longer than that of one with more. So a kind that was measured is predicted as it was, whatever the sum says, and
    more work never counts as less time.

    Args:
        guess: costs of the terms beside each other, believed as long as no measurement tells them apart. One kind
            alone then fits exactly, at any speed of the machine.
        variable: the last so many terms grow with the work; the others are fixed.
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
        """``kind``, which has ``terms``, took ``seconds``; ``cold``: in the warm-up."""
        self._count += 1
        seen = self._kinds.get(kind)
        if cold and seen is not None and not seen.cold:
            return  # ranks that are new once more say nothing better
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
        """Expected seconds, None before anything was measured; and how many times more it is than all measured."""
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
        """Least squares of relative errors, without negative costs, for the likeliest guess of how much is fixed."""
        kinds = list(self._kinds.values())
        terms, seconds = np.array([kind.terms for kind in kinds]), np.array([kind.seconds for kind in kinds])
        weights = np.array([self._faded(kind) * (_COLD if kind.cold else 1.0) for kind in kinds]) ** 0.5
        relative, weights = terms / seconds[:, None], weights / weights.max()
        tried = [(times, *self._solved(relative, weights, times)) for times in _FIXED]
        times, costs, _ = min(tried, key=lambda one: one[2] ** 2 + (_DOUBLING * np.log2(one[0])) ** 2)
        # What is far off its own prediction was disturbed, and is believed less.
        for _ in range(_AGAIN):
            off = np.abs(relative @ costs - 1)
            costs, _ = self._solved(relative, weights / np.maximum(1.0, off / _USUAL), times)
        return costs

    def _solved(self, relative: np.ndarray, weights: np.ndarray, times: float) -> tuple[np.ndarray, float]:
        """Costs, and how far they are off, where the fixed terms cost so many times more than is guessed."""
        from scipy.optimize import nnls  # half a second to import, and the ingress never needs it

        guess = np.where(self._fixed, times, 1.0) * self._guess
        rows = relative * guess  # in units of the guess: where that is right, all costs are equal
        ratios = _GUESS * rows[weights.argmax()].sum() * (np.eye(len(guess)) - 1 / len(guess))
        costs, error = nnls(np.vstack([rows * weights[:, None], ratios]), np.append(weights, np.zeros(len(guess))))
        return costs * guess, error
