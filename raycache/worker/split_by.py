"""The two ways to split a transformer: ParaAttention's adapter, or diffusers' attention with a plan in our hooks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch.distributed.device_mesh import init_device_mesh

from cache_core.para_attention import repair_para_attention
from raycache.worker.fused_ulysses import fuse_ulysses
from raycache.worker.split_hooks import split_by_plan
from raycache.worker.uneven import TokenSplit

__all__ = ["by_diffusers", "by_para_attention", "config_of"]


def by_para_attention(transformer: Any) -> None:
    """Split with ParaAttention's adapter; its ``parallelize_pipe`` would patch the pipeline's class."""
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    repair_para_attention()
    parallelize_transformer(transformer)


def by_diffusers(
    transformer: Any,
    plan: Mapping[str, Any] | None = None,
    whole: tuple[str, ...] = (),
    split: TokenSplit | None = None,
    streams: Mapping[str, str] | None = None,
) -> None:
    """Split with diffusers' attention; our own hooks apply its plans, also to tokens that do not divide evenly.

    Replaces ``enable_parallelism``, which divides by the number of accelerators: a CPU has none.

    Args:
        plan: which tensors are split and gathered at which modules; None: the plan of the transformer's class.
        whole: patterns of module names; attention below them has all tokens on every rank and communicates nothing.
        split: how tokens are split; attention reads it.
        streams: by pattern of module names, the only stream that attention below them sees.
    """
    fuse_ulysses()
    ranks, device = dist.get_world_size(), transformer.device
    context: Any = ContextParallelConfig(ulysses_degree=ranks)
    config = ParallelConfig(context_parallel_config=context)
    mesh = init_device_mesh(device.type, context.mesh_shape, mesh_dim_names=context.mesh_dim_names)
    config.setup(dist.get_rank(), ranks, device, mesh=mesh)
    context.split = split or TokenSplit()
    context.split.join(context._ulysses_mesh.get_group())
    transformer._parallel_config = config
    for name, module in transformer.named_modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config") and not any(fnmatch(name, pattern) for pattern in whole):
            within = [stream for pattern, stream in (streams or {}).items() if fnmatch(name, pattern)]
            processor._parallel_config = config_of(config, context.split.only(within[0])) if within else config
    split_by_plan(transformer, context, dict(transformer._cp_plan if plan is None else plan))


def config_of(config: ParallelConfig, split: TokenSplit) -> ParallelConfig:
    """A config of the same ranks with another split."""
    own, context = copy.copy(config), copy.copy(config.context_parallel_config)
    asked: Any = context
    asked.split = split
    own.context_parallel_config = context
    return own
