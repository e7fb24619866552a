"""Finds the process group whose ranks share one transformer, and so share its decisions."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from cache_core.wrapped import wrapped_forwards

__all__ = ["find_group", "is_parallelized"]


def is_parallelized(transformer: nn.Module) -> bool:
    """Whether ParaAttention or diffusers' own parallelism (context or tensor) spreads this transformer over ranks."""
    return bool(getattr(transformer, "_is_parallelized", False)) or _diffusers_config(transformer) is not None


def find_group(transformer: nn.Module) -> dist.ProcessGroup | None:
    """The group of ranks that share a transformer's image; None if it is not parallelized.

    Raises:
        RuntimeError: it is parallelized, but over which ranks cannot be told; deciding alone would deadlock.
    """
    if not is_parallelized(transformer):
        return None
    config = _diffusers_config(transformer)
    for name in ("_flattened_mesh", "_mesh"):  # context parallel: ring x ulysses as one; tensor parallel: one alone
        if (mesh := getattr(config, name, None)) is not None:
            group: dist.ProcessGroup = mesh.get_group()
            return group
    for _, cells in wrapped_forwards(transformer):  # ParaAttention's forward closes over the mesh of its sequence
        if isinstance(mesh := cells.get("seq_mesh"), DeviceMesh):
            return mesh.get_group()
    raise RuntimeError(
        f"{type(transformer).__name__} is parallelized, but its process group cannot be told from it; "
        "pass group= (the torch.distributed group of the ranks that share one picture)"
    )


def _diffusers_config(transformer: nn.Module) -> Any:
    """Tensor parallel ranks hold the same states and would decide alike, but an abort is one rank's own wish."""
    config = getattr(transformer, "_parallel_config", None)
    context = getattr(config, "context_parallel_config", None)
    return context if context is not None else getattr(config, "tensor_parallel_config", None)
