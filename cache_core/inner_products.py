"""Partial inner products behind a fitted forecast, in float32, for one image's shard of tokens.

With residuals ``r_1 .. r_m`` of the first blocks at the last computed steps (the nodes, oldest first) and ``r`` of this
step, the deviation is ``e = r - r_m``, and the differences of the nodes are ``d_j = r_(m-j) - r_m`` for
``j = 1 .. m-1``. Their inner products are all that a fit needs, and give the error of any weights
(:mod:`cache_core.policies.weight_fit`). Differences, not the residuals themselves: if residuals hardly differ, float32
products of them keep only what they have in common. Sums add up over shards as in :mod:`cache_core.difference`, with
the same summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cache_core.difference import can_fuse, fused

__all__ = ["deviation_products", "node_products"]

#: Elements per chunk on CPU: the temporaries (1 MiB each) stay in cache.
_CHUNK = 1 << 18


@torch.no_grad()
def deviation_products(
    current: torch.Tensor, minus: torch.Tensor, nodes: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """``<e, e>`` and ``<e, d_j>`` for each difference of the nodes, newest first.

    Args:
        current: output of the first blocks, [tokens, channels], any floating dtype.
        minus: their input. ``current - minus`` is rounded to the common dtype, as a node is.
        nodes: one residual or more, oldest first; shape and dtype of ``current``.

    Returns:
        As many float32 tensors of shape [] as there are nodes.
    """
    return _summed(_deviation, (current, minus, *reversed(nodes)))


@torch.no_grad()
def node_products(nodes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """``<r_m, r_m>``, then ``<d_i, d_j>`` for ``i <= j``: 1 number for one node, 2 for two, 4 for three.

    Args and returns as in :func:`deviation_products`; the order is 11, 12, 22.
    """
    return _summed(_nodes, tuple(reversed(nodes)))


def _summed(products: Callable[..., torch.Tensor], tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    first = tensors[0]
    if first.is_cuda:
        return tuple((fused(products) if can_fuse() else products)(*tensors).unbind())
    rows = max(1, _CHUNK // max(1, first[0].numel()))
    parts = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    return tuple(torch.stack([products(*part) for part in parts]).sum(0).unbind())


def _deviation(current: torch.Tensor, minus: torch.Tensor, last: torch.Tensor, *older: torch.Tensor) -> torch.Tensor:
    base = last.float()
    moved = (current - minus).float() - base
    return torch.stack([(moved * moved).sum(), *((moved * (node.float() - base)).sum() for node in older)])


def _nodes(last: torch.Tensor, *older: torch.Tensor) -> torch.Tensor:
    base = last.float()
    steps = [node.float() - base for node in older]
    pairs = [(own * other).sum() for i, own in enumerate(steps) for other in steps[i:]]
    return torch.stack([(base * base).sum(), *pairs])
