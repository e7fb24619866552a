"""Embedded guidance of its own for each picture of a batch; diffusers' pipelines take one number for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["guided"]


@contextmanager
def guided(transformer: nn.Module, scales: Sequence[float]) -> Iterator[None]:
    """Within the block every call of ``transformer`` gets ``scales``, one for each image, as its ``guidance``.

    Without any, and for a model that is not distilled from guidance (``guidance=None``), nothing changes.
    """

    def own(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        common: torch.Tensor | None = kwargs.get("guidance")
        if common is not None and scales:
            kwargs = kwargs | {"guidance": torch.tensor(scales, dtype=common.dtype, device=common.device)}
        return args, kwargs

    handle = transformer.register_forward_pre_hook(own, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
