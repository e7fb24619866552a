"""ParaAttention 0.3.38 under diffusers 0.42, and the group its ranks share.

diffusers 0.42 calls ``scaled_dot_product_attention(..., enable_gqa=...)``; ParaAttention's replacement does not take
that keyword. Attention without grouped queries passes ``enable_gqa=False``, which changes nothing, so it is dropped;
True is refused. Only ``parallelize_transformer`` is used: ``parallelize_pipe`` patches the pipeline's class.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch.distributed as dist
from torch import nn

from cache_core import find_group

__all__ = ["mend_is_needed", "parallelize"]


def parallelize(transformer: nn.Module) -> dist.ProcessGroup:
    """Split the transformer's tokens over all ranks of the default group with Ulysses attention.

    Returns:
        The context-parallel group, whose ranks decide together.

    Raises:
        ValueError: the attention heads do not divide among the ranks.
    """
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    world, heads = dist.get_world_size(), transformer.config.num_attention_heads
    if heads % world:
        raise ValueError(f"{heads} attention heads do not divide among {world} ranks; use a divisor of {heads}")
    _mend()
    parallelize_transformer(transformer)
    group = find_group(transformer)
    assert group is not None
    return group


def mend_is_needed() -> bool:
    """Whether the installed ParaAttention still lacks the ``enable_gqa`` keyword."""
    from para_attn import para_attn_interface

    function = inspect.unwrap(para_attn_interface.ulysses_attn_func)
    return "enable_gqa" not in inspect.signature(function).parameters


def _mend() -> None:
    from para_attn import para_attn_interface

    attention = para_attn_interface.ulysses_attn_func
    if not mend_is_needed() or hasattr(attention, "__wrapped__"):
        return

    @functools.wraps(attention)
    def without_enable_gqa(*args: Any, enable_gqa: bool = False, **kwargs: Any) -> Any:
        if enable_gqa:
            raise ValueError("ParaAttention's Ulysses attention has no grouped queries (enable_gqa=True)")
        return attention(*args, **kwargs)

    para_attn_interface.ulysses_attn_func = without_enable_gqa
