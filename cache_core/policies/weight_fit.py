"""The weights of a forecast, fitted to the image's actual residual, and their remaining error.

Of the residual ``r`` of the first blocks, computed anyway, and the nodes ``r_1 .. r_m`` before it, the weights are the
``w`` with ``sum w = 1`` that minimise ``|r - sum w_i r_i|``. With ``e = r - r_m`` and ``d_j = r_(m-j) - r_m`` this is
least squares without the constraint, ``|e - sum v_j d_j|``. Solution and error need their inner products only::

    G v = b,   G_ij = <d_i, d_j>,   b_i = <d_i, e>,   error^2 = <e, e> - 2 v.b + v.G v

So each rank adds up the products of its own tokens, one all-reduce adds up the ranks, and every rank solves the same
2 x 2 system in Python's float64: the weights are equal to the last bit.

The error is that of the weights that are used, fitted or not, so a doubtful fit cannot pass for a good forecast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cache_core.policies.residual import SPAN
from cache_core.policy import Verdict

__all__ = ["WIDTH", "Products", "fitted"]

#: Numbers an image brings into the all-reduce, however many nodes it has yet.
WIDTH = 7
#: Differences of which the angle's squared sine is smaller are taken for parallel: products in float32 are known to
#: 1e-7, so that of ``G``'s determinant no digit would be left at 1e-7.
_PARALLEL = 1e-5
#: ``<d, d>`` below this part of ``<r_m, r_m>`` is what rounding made of two equal residuals.
_EQUAL = 1e-13


class Products(NamedTuple):
    """One image's inner products over all ranks; 0 where there is no such node.

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
            weights: of the last nodes, the oldest first, in sum 1.
        """
        v1, v2 = (*reversed(weights[:-1]), 0.0, 0.0)[:2]
        square = self.ee - 2 * (v1 * self.e1 + v2 * self.e2)
        square += v1 * v1 * self.g11 + 2 * v1 * v2 * self.g12 + v2 * v2 * self.g22
        return math.sqrt(max(0.0, square))  # rounding may leave a little less than nothing

    def line(self) -> list[float] | None:
        """Weights of the last two nodes; None if they do not differ."""
        if self.g11 <= _EQUAL * self.last:
            return None
        v1 = self.e1 / self.g11
        return [v1, 1 - v1]

    def plane(self) -> list[float] | None:
        """Weights of three nodes; None if their differences are parallel, or none."""
        scale = self.g11 * self.g22
        determinant = scale - self.g12 * self.g12
        if min(self.g11, self.g22) <= _EQUAL * self.last or determinant <= _PARALLEL * scale:
            return None
        v1 = (self.e1 * self.g22 - self.e2 * self.g12) / determinant
        v2 = (self.e2 * self.g11 - self.e1 * self.g12) / determinant
        return [v2, v1, 1 - v1 - v2]


def fitted(otherwise: Sequence[float], *products: float) -> Verdict:
    """One image's verdict: the error relative to the last node, and the weights it belongs to.

    Of all nodes, then of the last two, the fit is taken that is determined and magnifies what is inexact in the nodes
    by no more than :data:`~cache_core.policies.residual.SPAN` (the sum of absolute weights).

    Args:
        otherwise: the weights where there is no such fit.
        products: of :class:`Products`.
    """
    if not all(map(math.isfinite, products)):
        return Verdict(None, finite=False)
    known = Products(*products)
    fits = (fit for fit in (known.plane(), known.line()) if fit is not None)
    weights = next((fit for fit in fits if sum(map(abs, fit)) <= SPAN), otherwise)
    size = math.sqrt(max(0.0, known.last))
    return Verdict(known.error(weights) / size if size > 0 else None, finite=True, weights=tuple(weights))
