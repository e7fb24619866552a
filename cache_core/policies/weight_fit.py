"""The weights of a forecast, fitted to the image's actual residual, and their remaining error.

For the residual ``r`` of the first blocks, which is computed anyway, and the nodes ``r_1 .. r_m`` before it, the
weights are the ``w`` with ``sum w = 1`` that minimise ``|r - sum w_i r_i|``. With ``e = r - r_m`` and
``d_j = r_(m-j) - r_m`` this is unconstrained least squares, ``|e - sum v_j d_j|``. Solution and error need only inner
products::

    G v = b,   G_ij = <d_i, d_j>,   b_i = <d_i, e>,   error^2 = <e, e> - 2 v.b + v.G v

So each rank adds up the products of its own tokens, one all-reduce adds up the ranks, and every rank solves the same
2 x 2 system in Python's float64: the weights are equal to the last bit.

The error is that of the weights in use, fitted or not, so a doubtful fit cannot be mistaken for a good forecast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cache_core.policies.residual import SPAN
from cache_core.policy import Verdict

__all__ = ["WIDTH", "Products", "fitted"]

#: Numbers that an image contributes to the all-reduce, however many nodes it has so far.
WIDTH = 7
#: Differences are treated as parallel if the squared sine of their angle is smaller: float32 products are accurate to
#: 1e-7, so at 1e-7 no digit of ``G``'s determinant would be left.
_PARALLEL = 1e-5
#: ``<d, d>`` below this part of ``<r_m, r_m>`` is the rounding error of two equal residuals.
_EQUAL = 1e-13


class Products(NamedTuple):
    """One image's inner products over all ranks; 0 for missing nodes.

    Attributes:
        ee, e1, e2: ``<e, e>``, ``<e, d_1>``, ``<e, d_2>``; ``d_1`` is the newest difference.
        last: ``<r_m, r_m>``, the size that the error is relative to.
        g11, g12, g22: ``<d_i, d_j>``.
    """

    ee: float
    e1: float
    e2: float
    last: float
    g11: float
    g12: float
    g22: float

    def error(self, weights: Sequence[float]) -> float:
        """``|r - sum w_i r_i|``.

        Args:
            weights: of the last nodes, oldest first, with sum 1.
        """
        v1, v2 = (*reversed(weights[:-1]), 0.0, 0.0)[:2]
        square = self.ee - 2 * (v1 * self.e1 + v2 * self.e2)
        square += v1 * v1 * self.g11 + 2 * v1 * v2 * self.g12 + v2 * v2 * self.g22
        return math.sqrt(max(0.0, square))  # rounding may make it slightly negative

    def line(self) -> list[float] | None:
        """Weights of the last two nodes; None if they do not differ."""
        if self.g11 <= _EQUAL * self.last:
            return None
        v1 = self.e1 / self.g11
        return [v1, 1 - v1]

    def plane(self) -> list[float] | None:
        """Weights of three nodes; None if their differences are parallel or zero."""
        scale = self.g11 * self.g22
        determinant = scale - self.g12 * self.g12
        if min(self.g11, self.g22) <= _EQUAL * self.last or determinant <= _PARALLEL * scale:
            return None
        v1 = (self.e1 * self.g22 - self.e2 * self.g12) / determinant
        v2 = (self.e2 * self.g11 - self.e1 * self.g12) / determinant
        return [v2, v1, 1 - v1 - v2]


def fitted(otherwise: Sequence[float], *products: float) -> Verdict:
    """One image's verdict: the error relative to the last node, and the weights that it belongs to.

    Uses the fit on all nodes, else on the last two, if it is determined and magnifies the nodes' errors by no more than
    :data:`~cache_core.policies.residual.SPAN` (the sum of absolute weights).

    Args:
        otherwise: the weights to use if there is no such fit.
        products: of :class:`Products`.
    """
    if not all(map(math.isfinite, products)):
        return Verdict(None, finite=False)
    known = Products(*products)
    fits = (fit for fit in (known.plane(), known.line()) if fit is not None)
    weights = next((fit for fit in fits if sum(map(abs, fit)) <= SPAN), otherwise)
    size = math.sqrt(max(0.0, known.last))
    return Verdict(known.error(weights) / size if size > 0 else None, finite=True, weights=tuple(weights))
