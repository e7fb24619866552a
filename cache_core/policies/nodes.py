"""The Fn blocks' residuals of one image at the last computed steps, on which its forecast is fitted."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cache_core.consensus import Sums
from cache_core.inner_products import deviation_products, node_products
from cache_core.policies.residual import SPAN, forecast_weights

__all__ = ["Nodes"]


class Nodes:
    """Residuals of up to ``most`` computed steps; the middle's residuals are kept for the same steps."""

    __slots__ = ("_between", "_most", "_steps", "_tensors")

    def __init__(self, most: int) -> None:
        self._most = most
        self._steps: list[int] = []
        self._tensors: list[torch.Tensor] = []
        self._between: Sums | None = None  # products of the nodes, valid while the nodes are the same

    def __bool__(self) -> bool:
        return bool(self._steps)

    @property
    def last(self) -> int:
        """The last computed step; there must be one."""
        return self._steps[-1]

    def record(self, step: int, residual: torch.Tensor) -> None:
        """Remember the residual of a computed step, [tokens, channels]; the oldest beyond ``most`` is dropped."""
        self._steps = [*self._steps, step][-self._most :]
        self._tensors = [*self._tensors, residual.detach()][-self._most :]
        self._between = None

    def undo(self, step: int) -> None:
        """Drop what was recorded at ``step``."""
        if step in self._steps:
            at = self._steps.index(step)
            self._steps, self._tensors = self._steps[:at], self._tensors[:at]
            self._between = None

    def clear(self) -> None:
        """Drop everything."""
        self._steps, self._tensors, self._between = [], [], None

    def products(self, current: torch.Tensor, minus: torch.Tensor) -> Sums:
        """This rank's sums for :class:`~cache_core.policies.weight_fit.Products`, always the same number.

        Args:
            current, minus: output and input of the Fn blocks, [tokens, channels].
        """
        if self._between is None:
            last, *pairs = node_products(self._tensors)
            self._between = (last, *pairs, *[torch.zeros_like(last)] * (3 - len(pairs)))
        now = deviation_products(current, minus, self._tensors)
        return *now, *[torch.zeros_like(now[0])] * (3 - len(now)), *self._between

    def weights(self, step: int) -> list[float]:
        """Interpolation weights for the nodes' steps, of the highest order that magnifies no more than the limit."""
        return forecast_weights(self._steps, step, SPAN)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held."""
        yield from self._tensors
        yield from self._between or ()
