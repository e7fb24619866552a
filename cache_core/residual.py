"""What a span of blocks added to one image, remembered over the last computed steps, and what it would add now.

Order 0 repeats the last residual. Orders 1 and 2 extrapolate it (TaylorSeer, arXiv:2503.06923). Where TaylorSeer builds
derivatives from differences over an assumed fixed interval, this is the interpolating polynomial through the computed
steps at their real positions: exact for residuals that are polynomials of that order, however uneven the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

__all__ = ["Residual", "extrapolation_weights"]


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


class Residual:
    """Residuals of both streams of one image at up to ``order + 1`` computed steps.

    Shapes are those of one image's row: hidden [image tokens, channels], encoder [text tokens, channels] or None for
    blocks that do not return the text stream.
    """

    __slots__ = ("_order", "_samples")

    def __init__(self, order: int = 0) -> None:
        self._order = order
        self._samples: list[_Sample] = []

    def __bool__(self) -> bool:
        return bool(self._samples)

    def record(self, step: int, hidden: torch.Tensor, encoder: torch.Tensor | None) -> None:
        """Remember the residual of a computed step, without its graph; the oldest beyond ``order + 1`` is dropped."""
        sample = _Sample(step, hidden.detach(), None if encoder is None else encoder.detach())
        self._samples = [*self._samples[-self._order :], sample] if self._order else [sample]

    def add_to(
        self, step: int, hidden: torch.Tensor, encoder: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Both streams with the residual forecast for ``step`` added; the inputs are not written to."""
        weights = extrapolation_weights([sample.step for sample in self._samples], step)
        text: torch.Tensor | None = None
        for weight, sample in zip(weights, self._samples, strict=True):
            hidden = torch.add(hidden, sample.hidden, alpha=weight)
            if sample.encoder is not None:
                text = torch.add(encoder if text is None else text, sample.encoder, alpha=weight)
        return hidden, text

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held, for memory accounting."""
        for sample in self._samples:
            yield sample.hidden
            if sample.encoder is not None:
                yield sample.encoder
