"""ParaAttention 0.3.38 under diffusers 0.42: a repair, and fewer messages.

diffusers 0.42 calls ``scaled_dot_product_attention(..., enable_gqa=...)``; ParaAttention's replacement does not take
that keyword, so a transformer that its ``parallelize_pipe`` split fails at the first attention. Attention without
grouped queries passes ``enable_gqa=False``, which changes nothing, so it is dropped; True is refused. ParaAttention
sends query, key and value in one all-to-all each; here they share one, so a block costs two messages to each peer
instead of four.

The cache repairs it when a session opens on a transformer that ParaAttention split; without the cache, call
:func:`repair_para_attention`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["gather_heads", "mend_is_needed", "repair_if_used", "repair_para_attention"]


def repair_if_used(transformer: nn.Module) -> None:
    """Repair ParaAttention if it split this transformer; a process that never imported it is left alone."""
    if getattr(transformer, "_is_parallelized", False) and "para_attn" in sys.modules:
        repair_para_attention()


def mend_is_needed() -> bool:
    """Whether the installed ParaAttention still lacks the ``enable_gqa`` keyword."""
    from para_attn import para_attn_interface

    function = inspect.unwrap(para_attn_interface.ulysses_attn_func)
    return "enable_gqa" not in inspect.signature(function).parameters


def gather_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mesh: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ulysses' first exchange: from all heads of this rank's tokens to this rank's heads of all tokens.

    One all-to-all instead of three, with no additional copy: packing is part of the copy that puts heads first.

    Args:
        query, key, value: ``[batch, heads, tokens, channels]`` each, with the same shape and dtype.
        mesh: ParaAttention's mesh of the ranks; their number divides the heads.

    Returns:
        Three tensors ``[batch, heads / ranks, tokens x ranks, channels]``, tokens in the order of ranks.
    """
    from para_attn import para_attn_interface as interface

    ranks = interface.DP.get_world_size(mesh)
    batch, heads, tokens, channels = query.shape
    packed = torch.stack([states.permute(1, 0, 2, 3) for states in (query, key, value)], dim=1)
    packed = interface._sdpa_all_to_all_single(packed, mesh)
    # [ranks, own heads, 3, batch, tokens, channels] -> [3, batch, own heads, ranks, tokens, channels]
    parts = packed.reshape(ranks, heads // ranks, 3, batch, tokens, channels).permute(2, 3, 1, 0, 4, 5)
    query, key, value = parts.reshape(3, batch, heads // ranks, ranks * tokens, channels).unbind(0)
    return query, key, value


def repair_para_attention() -> None:
    """Make ParaAttention's attention work with the installed diffusers in this process; calling it once is enough."""
    from para_attn import para_attn_interface as interface

    separate: Callable[..., torch.Tensor] = interface.ulysses_attn_func
    if not mend_is_needed() or hasattr(separate, "__wrapped__"):
        return

    @functools.wraps(separate)
    def fused(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *args: Any,
        enable_gqa: bool = False,
        mesh: Any = None,
        attn_func: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if enable_gqa:
            raise ValueError("ParaAttention's Ulysses attention does not support grouped queries (enable_gqa=True)")
        alike = query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype
        if not alike or mesh is None or interface.DP.get_world_size(mesh) == 1:
            return separate(query, key, value, *args, mesh=mesh, attn_func=attn_func, **kwargs)
        attend = attn_func or F.scaled_dot_product_attention
        out = attend(*gather_heads(query, key, value, mesh), *args, **kwargs)
        gathered: torch.Tensor = interface._sdpa_output_all_to_all(out, mesh)
        return gathered

    interface.ulysses_attn_func = fused
