"""The residual of a span of blocks for one image at the last computed steps, and its forecast for this step.

Order 0 repeats the last residual. Orders 1 and 2 extrapolate it (TaylorSeer, arXiv:2503.06923). Where TaylorSeer builds
derivatives from differences over an assumed fixed interval, this is the interpolating polynomial through the computed
steps at their real positions: exact for residuals that are polynomials of that order, however uneven the steps.

Recorded values are not exact, and extrapolation magnifies their errors by the sum of the absolute weights: a parabola
through three successive steps 7 times one step ahead, 31 times three steps ahead. So order 2 is an upper bound: of the
polynomials through the last steps, the one of highest order that magnifies no more than a limit is used, if necessary
the constant. Order 1 is the line, as published.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

__all__ = ["PER_BLOCK", "SPAN", "Residual", "extrapolation_weights", "forecast_weights"]

#: Limit for one residual over a span of blocks, which starts from computed states: a parabola through three successive
#: steps, two steps ahead.
SPAN = 17.0
#: Limit where each block is forecast separately. Its input comes from earlier forecasts, so errors multiply with depth,
#: change the inputs that are compared, and return through what is recorded next. A line two steps ahead.
PER_BLOCK = 5.0


class _Sample(NamedTuple):
    step: int
    hidden: torch.Tensor
    encoder: torch.Tensor | None


def extrapolation_weights(steps: list[int], at: int) -> list[float]:
    """Lagrange weights: the value at step ``at`` of the polynomial through the values at ``steps``.

    >>> extrapolation_weights([2, 4], 5)
    [-0.5, 1.5]
    """
    weights = []
    for i, own in enumerate(steps):
        weight = 1.0
        for j, other in enumerate(steps):
            if j != i:
                weight *= (at - other) / (own - other)
        weights.append(weight)
    return weights


def forecast_weights(steps: list[int], at: int, limit: float) -> list[float]:
    """Weights of the last of ``steps``, of the highest order that magnifies errors by at most ``limit``.

    >>> forecast_weights([2, 3, 4], 5, limit=7)
    [1.0, -3.0, 3.0]
    >>> forecast_weights([2, 3, 4], 5, limit=5)
    [-1.0, 2.0]
    >>> forecast_weights([2, 3, 4], 9, limit=5)
    [1.0]
    """
    for first in range(len(steps)):
        weights = extrapolation_weights(steps[first:], at)
        if sum(map(abs, weights)) <= limit * (1 + 1e-9):
            return weights
    return [1.0]


class Residual:
    """Residuals of both streams of one image at up to ``order + 1`` computed steps.

    Args:
        order: the highest order of the forecast.
        limit: how much order 2 may magnify errors of recorded values.

    Shapes are those of one image's row: hidden [image tokens, channels], encoder [text tokens, channels] or None for
    blocks that do not return the text stream.
    """

    __slots__ = ("_limit", "_order", "_samples")

    def __init__(self, order: int = 0, limit: float = SPAN) -> None:
        self._order, self._limit = order, limit if order > 1 else math.inf
        self._samples: list[_Sample] = []

    def __bool__(self) -> bool:
        return bool(self._samples)

    def record(self, step: int, hidden: torch.Tensor, encoder: torch.Tensor | None) -> None:
        """Remember the residual of a computed step, detached; the oldest beyond ``order + 1`` is dropped."""
        sample = _Sample(step, hidden.detach(), None if encoder is None else encoder.detach())
        self._samples = [*self._samples[-self._order :], sample] if self._order else [sample]

    def undo(self, step: int) -> None:
        """Drop what was recorded at ``step``, which will be recorded again."""
        self._samples = [sample for sample in self._samples if sample.step != step]

    def add_to(
        self, step: int, hidden: torch.Tensor, encoder: torch.Tensor | None, weights: Sequence[float] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both streams with the residual forecast for ``step`` added; the inputs are not written to.

        Args:
            weights: of the last recorded residuals, oldest first; None = the polynomial's.
        """
        if weights is None:
            weights = forecast_weights([sample.step for sample in self._samples], step, self._limit)
        text: torch.Tensor | None = None
        for weight, sample in zip(weights, self._samples[-len(weights) :], strict=True):
            hidden = torch.add(hidden, sample.hidden, alpha=weight)
            if sample.encoder is not None:
                before = encoder if text is None else text
                assert before is not None  # a block has a text stream at every step or at none
                text = torch.add(before, sample.encoder, alpha=weight)
        return hidden, text

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held, for memory accounting."""
        for sample in self._samples:
            yield sample.hidden
            if sample.encoder is not None:
                yield sample.encoder
