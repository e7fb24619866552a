"""Partial sums of the relative L1 difference, in float32, for one image's shard of tokens.

The statistic behind every decision is ``sum|current - reference| / sum|reference|`` over all tokens and channels of
one image. Each rank sums its own shard here; :mod:`cache_core.consensus` adds up the shards. Sums, not means, so that
uneven shards stay exact.

``vector_norm(ord=1)``, ``torch.dist`` and ``cdist`` are not used on purpose: on CPU they add float32 numbers one after
another and are 0.9 % off on 12.6 million values. ``.sum()`` adds pairwise.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["absolute_sum", "can_fuse", "difference_sum", "fused"]

#: Elements per chunk on CPU: the temporaries (1 MiB) stay in cache, so they cost no pass over memory.
_CHUNK = 1 << 18


@torch.no_grad()
def difference_sum(
    current: torch.Tensor, reference: torch.Tensor, *, minus: torch.Tensor | None = None
) -> torch.Tensor:
    """``sum |current - reference|``, or ``sum |(current - minus) - reference|`` when ``minus`` is given.

    Args:
        current: [tokens, channels], any floating dtype.
        reference: same shape and dtype.
        minus: same shape and dtype. ``current - minus`` is rounded to the common dtype, as a stored residual is.

    Returns:
        float32 tensor of shape [] on the same device. The difference itself is taken in float32.
    """
    if current.is_cuda and can_fuse():
        if minus is None:
            return fused(_difference)(current, reference)
        return fused(_residual)(current, minus, reference)
    if current.is_cuda or current.numel() <= _CHUNK:
        return _eager(current, reference, minus)
    rows = max(1, _CHUNK // max(1, current[0].numel()))
    scratch = torch.empty((rows, *current.shape[1:]), dtype=torch.float32, device=current.device)
    partial = torch.empty(-(-current.shape[0] // rows), dtype=torch.float32, device=current.device)
    for i, start in enumerate(range(0, current.shape[0], rows)):
        part = slice(start, start + rows)
        piece = scratch[: min(rows, current.shape[0] - start)]
        if minus is None:
            piece.copy_(current[part])
        else:
            torch.sub(current[part], minus[part], out=piece)
        piece.sub_(reference[part]).abs_()
        torch.sum(piece.reshape(-1), 0, out=partial[i])
    return partial.sum()


@torch.no_grad()
def absolute_sum(values: torch.Tensor) -> torch.Tensor:
    """``sum |values|`` of a [tokens, channels] tensor as a float32 tensor of shape []."""
    if values.is_cuda and can_fuse():
        return fused(_absolute)(values)
    if values.is_cuda or values.numel() <= _CHUNK:
        return values.float().abs().sum()
    rows = max(1, _CHUNK // max(1, values[0].numel()))
    scratch = torch.empty((rows, *values.shape[1:]), dtype=torch.float32, device=values.device)
    partial = torch.empty(-(-values.shape[0] // rows), dtype=torch.float32, device=values.device)
    for i, start in enumerate(range(0, values.shape[0], rows)):
        piece = scratch[: min(rows, values.shape[0] - start)]
        torch.sum(piece.copy_(values[start : start + rows]).abs_().reshape(-1), 0, out=partial[i])
    return partial.sum()


def _eager(current: torch.Tensor, reference: torch.Tensor, minus: torch.Tensor | None) -> torch.Tensor:
    if minus is not None:
        current = current - minus
    return (current.float() - reference.float()).abs_().sum()


def _absolute(values: torch.Tensor) -> torch.Tensor:
    return values.float().abs().sum()


def _difference(current: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (current.float() - reference.float()).abs().sum()


def _residual(current: torch.Tensor, minus: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return ((current - minus).float() - reference.float()).abs().sum()


@functools.cache
def can_fuse() -> bool:
    """Whether Triton can build a kernel here: torch installs Triton, but not the C compiler and the Python headers that
    Triton needs to build each kernel's launcher. Slim container images lack them."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return (
        importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in compilers if name)
        and Path(sysconfig.get_path("include"), "Python.h").exists()
    )


@functools.cache
def fused(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """One kernel of ``function``, with dynamic shapes so that a new image size needs no recompile. Created on first
    use: importing the compiler takes a second, which a machine without a GPU need not spend."""
    return torch.compile(function, dynamic=True)
