"""Finds the process group whose ranks share one transformer, and therefore its decisions."""

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
        RuntimeError: it is parallelized, but its ranks cannot be determined; deciding alone would deadlock.
    """
    if not is_parallelized(transformer):
        return None
    config = _diffusers_config(transformer)
    for name in ("_flattened_mesh", "_mesh"):  # context parallel: ring x ulysses, flattened; tensor parallel: one
        if (mesh := getattr(config, name, None)) is not None:
            group: dist.ProcessGroup = mesh.get_group()
            return group
    for _, cells in wrapped_forwards(transformer):  # ParaAttention's forward closes over the mesh of its sequence
        if isinstance(mesh := cells.get("seq_mesh"), DeviceMesh):
            return mesh.get_group()
    raise RuntimeError(
        f"{type(transformer).__name__} is parallelized, but its process group could not be found; "
        "pass group= (the torch.distributed group of the ranks that share one image)"
    )


def _diffusers_config(transformer: nn.Module) -> Any:
    """Tensor parallel ranks have the same states and would decide alike, but a single rank may ask to abort."""
    config = getattr(transformer, "_parallel_config", None)
    context = getattr(config, "context_parallel_config", None)
    return context if context is not None else getattr(config, "tensor_parallel_config", None)
