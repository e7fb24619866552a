"""A transformer split over the ranks by ParaAttention, and the group its ranks share.

Only ``parallelize_transformer`` is used: ``parallelize_pipe`` patches the pipeline's class. ParaAttention's repair for
diffusers 0.42 is :mod:`cache_core.para_attention`.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from cache_core import find_group
from cache_core.para_attention import repair_para_attention as _mend

__all__ = ["parallelize"]


def parallelize(transformer: nn.Module) -> dist.ProcessGroup:
    """Split the transformer's tokens over all ranks of the default group with Ulysses attention.

    Returns:
        The context-parallel group, whose ranks decide together.

    Raises:
        ValueError: the attention heads do not divide among the ranks.
    """
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    config: Any = transformer.config  # diffusers types it as a dict, and reads its attributes
    world, heads = dist.get_world_size(), config.num_attention_heads
    if heads % world:
        raise ValueError(f"{heads} attention heads do not divide among {world} ranks; use a divisor of {heads}")
    _mend()
    parallelize_transformer(transformer)
    group = find_group(transformer)
    assert group is not None
    return group
