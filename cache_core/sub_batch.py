"""A part of a batch: a block's arguments for some of the images."""

from __future__ import annotations

from typing import Any

import torch

from cache_core.block_specs import BlockSpec

__all__ = ["argument_of_rows"]


def argument_of_rows(spec: BlockSpec, name: str, value: Any, rows: list[int], batch: int, stream: bool) -> Any:
    """The entries of the images ``rows`` in one argument of a block; the whole argument if ``spec`` lists no entries.

    Args:
        batch: how many images the call has.
        stream: whether it is one of the block's two streams.
    """
    if name in spec.tokens_first:
        return _take(value, rows, batch, dim=1)
    if name in spec.with_shared and isinstance(value, torch.Tensor) and value.shape[0] == batch + 1:
        return torch.cat([_take(value[:-1], rows, batch), value[-1:]])
    if stream or name in spec.batched:
        return _take(value, rows, batch)
    if (keys := spec.nested.get(name)) and value:
        return value | {key: _take(value[key], rows, batch) for key in keys if key in value}
    return value


def _take(value: Any, rows: list[int], batch: int, dim: int = 0) -> Any:
    """The entries of the images ``rows``; if there are several per image, stacked batch after batch, all of them.

    Uses slices: an index tensor would be copied to the device, and the host would wait for that at every block.
    """
    if isinstance(value, torch.Tensor):
        repeats, rest = divmod(value.shape[dim] if value.ndim > dim else 0, batch)
        if rest or not repeats:
            return value
        starts = range(0, repeats * batch, batch)
        parts = [value.narrow(dim, start + row, 1) for start in starts for row in rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    if isinstance(value, tuple | list):
        return type(value)(_take(item, rows, batch, dim) for item in value)
    return value
