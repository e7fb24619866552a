"""diffusers' Ulysses attention with query, key and value in one all-to-all instead of three.

An attention call then costs two messages to each peer instead of four, and gives the same bits. Tokens and heads need
not divide evenly among the ranks (:mod:`raycache.worker.uneven`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import TemplatedUlyssesAttention

from raycache.worker.uneven import TokenSplit, gather_heads, gather_tokens, scatter_heads, shares

__all__ = ["FusedUlysses", "fuse_ulysses"]


class FusedUlysses(TemplatedUlyssesAttention):
    """diffusers' attention with other exchanges, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
        return_lse: bool,
        forward_op: Any,
        backward_op: Any,
        _parallel_config: Any = None,
    ) -> Any:
        """Attention of this rank's tokens to those of all ranks.

        Args:
            query, key, value: [batch, own tokens, heads, channels].
            attn_mask: its last dimension has all tokens, or only this rank's; it has one head for all, or all heads.
        """
        options = (dropout_p, is_causal, scale, enable_gqa, return_lse)
        ctx.forward_op, ctx.backward_op, ctx._parallel_config = forward_op, backward_op, _parallel_config
        ctx.uneven, ctx.whole_queries = None, False
        context = _parallel_config.context_parallel_config
        more = {"_save_ctx": True, "_parallel_config": _parallel_config}
        if (split := getattr(context, "split", None)) is not None and split.whole_queries:
            return _whole_queries(ctx, split, (query, key, value), attn_mask, options, forward_op, more)
        if split is not None and not _divides(split, query, key):
            return _uneven(ctx, split, (query, key, value), attn_mask, options, forward_op, more)
        ranks, group = context.ulysses_degree, context._ulysses_mesh.get_group()
        if attn_mask is not None and attn_mask.shape[-1] == key.shape[1]:
            attn_mask = _whole_mask(attn_mask, split, lambda own: _gather_evenly(own, ranks, group))
        attn_mask = _of_own_heads(attn_mask, query.shape[2], split)
        alike = query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype
        if not alike or return_lse:
            return TemplatedUlyssesAttention.forward(
                ctx, query, key, value, attn_mask, *options, forward_op, backward_op, _parallel_config
            )
        batch, tokens, _, channels = query.shape
        gathered = _gather_heads((query, key, value), ranks, group)
        out = forward_op(ctx, *gathered, attn_mask, *options, **more)
        out = out.reshape(batch, ranks, tokens, -1, channels).permute(1, 3, 0, 2, 4).contiguous()
        out = attention_dispatch._all_to_all_single(out, group)
        return out.flatten(0, 1).permute(1, 2, 0, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor, *args: Any) -> Any:
        """The exchanges in the other direction.

        Raises:
            NotImplementedError: every rank has all queries: their gradients would have to be summed over ranks.
        """
        if ctx.whole_queries:
            raise NotImplementedError("attention with all queries on every rank is for inference: it has no gradients")
        if ctx.uneven is None:
            return TemplatedUlyssesAttention.backward(ctx, grad_out, *args)
        split, sizes, heads = ctx.uneven
        (whole,) = gather_heads(split, [grad_out], sizes[:1])
        gradients = ctx.backward_op(ctx, whole)[:3]
        return *scatter_heads(split, gradients, sizes, heads), *[None] * 9


def _divides(split: TokenSplit, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether tokens and heads divide evenly among the ranks."""
    even = (sum(split.sizes(states.shape[1])) % split.ranks == 0 for states in (query, key))
    return split.even and all(even) and query.shape[2] % split.ranks == 0


def _whole_mask(
    mask: torch.Tensor, split: TokenSplit | None, gather: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The mask of all tokens, from each rank's mask of its own tokens.

    Args:
        mask: [batch, 1, 1 or own tokens, own tokens].
        gather: concatenates all ranks' last dimensions.

    Raises:
        ValueError: it has a row for each token; entries for pairs of tokens on different ranks are unknown.
    """
    if mask.shape[-2] == 1:
        return gather(mask)
    if split is None or not split.outer_masks:
        raise ValueError(
            f"a mask with a row for each of a rank's tokens, {list(mask.shape)}, cannot be gathered over the ranks"
        )
    of_each = gather(mask.diagonal(dim1=-2, dim2=-1).contiguous())  # an outer product's diagonal has squares
    return of_each[..., None, :] * of_each[..., :, None]


def _of_own_heads(mask: torch.Tensor | None, heads: int, split: TokenSplit | None) -> torch.Tensor | None:
    """This rank's heads of a mask that has all heads: LTX's masks do, though all heads are equal."""
    if mask is None or split is None or mask.dim() != 4 or mask.shape[1] != heads or heads == 1:
        return mask
    return mask.split(list(shares(heads, split.ranks)), 1)[split.rank]


def _gather_evenly(own: torch.Tensor, ranks: int, group: dist.ProcessGroup) -> torch.Tensor:
    parts = [torch.empty_like(own) for _ in range(ranks)]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts, dim=-1)


def _uneven(
    ctx: Any,
    split: TokenSplit,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: tuple[Any, ...],
    forward_op: Any,
    more: dict[str, Any],
) -> torch.Tensor:
    """The same with different numbers of tokens or heads on the ranks.

    Raises:
        ValueError: the log-sum-exp was requested, which only ring attention needs.
    """
    if options[-1]:
        raise ValueError("attention with uneven tokens or heads on ranks has no log-sum-exp: leave return_lse out")
    sizes, heads = [split.sizes(part.shape[1]) for part in states], states[0].shape[2]
    ctx.uneven = split, sizes, heads
    if mask is not None and mask.shape[-1] == states[1].shape[1]:
        mask = _whole_mask(mask, split, lambda own: gather_tokens(split, own, -1, sizes[1]))
    mask = _of_own_heads(mask, heads, split)
    out = forward_op(ctx, *gather_heads(split, states, sizes), mask, *options, **more)
    (own,) = scatter_heads(split, [out], sizes[:1], heads)
    return own


def _whole_queries(
    ctx: Any,
    split: TokenSplit,
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: tuple[Any, ...],
    forward_op: Any,
    more: dict[str, Any],
) -> torch.Tensor:
    """The same with all queries on every rank: they and the result are [batch, tokens, heads, channels]."""
    query, *others = states
    heads = shares(query.shape[2], split.ranks)
    ctx.whole_queries = True
    own = query.split(list(heads), 2)[split.rank]
    arrived = gather_heads(split, others, [split.sizes(part.shape[1]) for part in others])
    out = forward_op(ctx, own, *arrived, _of_own_heads(mask, query.shape[2], split), *options, **more)
    return gather_tokens(split, out, 2, heads)


def _gather_heads(states: tuple[torch.Tensor, ...], ranks: int, group: dist.ProcessGroup) -> tuple[torch.Tensor, ...]:
    """From all heads of this rank's tokens to this rank's heads of all tokens, for each of ``states``.

    It copies no more than separate all-to-alls would: packing is the copy that puts ranks first.

    Args:
        states: [batch, own tokens, heads, channels] each.

    Returns:
        As many of [batch, all tokens, heads / ranks, channels], tokens in the order of ranks.
    """
    batch, tokens, heads, channels = states[0].shape
    parts = [part.reshape(batch, tokens, ranks, heads // ranks, channels).permute(2, 1, 0, 3, 4) for part in states]
    packed = attention_dispatch._all_to_all_single(torch.stack(parts, dim=1), group)
    # [ranks, 3, own tokens, batch, own heads, channels] -> [3, batch, ranks, own tokens, own heads, channels]
    packed = packed.permute(1, 3, 0, 2, 4, 5).reshape(len(states), batch, ranks * tokens, heads // ranks, channels)
    return packed.unbind(0)


def fuse_ulysses() -> None:
    """Make diffusers use it in this process; calling it again has no effect."""
    module: Any = attention_dispatch  # replaces a class, which its types do not allow
    module.TemplatedUlyssesAttention = FusedUlysses
