"""Calls of different jobs as one call of their transformer: what must be equal, what is stacked, how it is split.

Which arguments have a row for each image is in a table (:mod:`raycache.worker.call_rows`). Everything else must be
equal, or two calls are not joined.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from cache_core.compiled import unwrap_compiled
from raycache.worker.call_rows import STACKED, CallRows

__all__ = ["join_key", "stack_arguments", "unstack"]

#: Digests of tensors, with the tensor's version: pipelines pass the same positions at every step.
_DIGESTS: WeakIdKeyDictionary = WeakIdKeyDictionary()


class _StaysAlone(Exception):
    """A call has an argument that cannot be compared, or that the table lacks."""


def join_key(transformer: nn.Module, kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """A key that is equal for calls that may be stacked; None if this call cannot be joined.

    It has shapes without the number of rows, and the values of tensors that are not stacked.
    """
    inner: Any = unwrap_compiled(transformer)
    table = STACKED.get(type(inner).__name__)
    if table is None:
        return None
    rows = _rows_of(kwargs)
    try:
        keys = tuple((name, _key(table, name, kwargs[name], rows)) for name in sorted(kwargs))
    except _StaysAlone:
        return None
    return *keys, table.told_together(inner.config, kwargs)


def stack_arguments(transformer: nn.Module, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate the arguments of calls with equal :func:`join_key`, job by job."""
    if len(calls) == 1:
        return dict(calls[0])
    table = STACKED[type(unwrap_compiled(transformer)).__name__]
    rows = [_rows_of(call) for call in calls]
    return {name: _stacked(table, name, [call[name] for call in calls], rows) for name in calls[0]}


def unstack(output: Any, rows: Sequence[int]) -> list[Any]:
    """Each job's part of what a transformer returned: a tensor, a list with an entry for each row, a tuple of those, or
    a diffusers output object."""
    if isinstance(output, torch.Tensor):
        return list(output.split(list(rows)))
    if isinstance(output, list):
        bounds = itertools.pairwise(itertools.accumulate(rows, initial=0))
        return [output[first:end] for first, end in bounds]
    if isinstance(output, tuple):
        return [tuple(part) for part in zip(*(unstack(own, rows) for own in output), strict=True)]
    if output is None:
        return [None] * len(rows)
    fields = {name: unstack(value, rows) for name, value in output.items()}
    return [type(output)(**{name: parts[k] for name, parts in fields.items()}) for k in range(len(rows))]


def _rows_of(kwargs: Mapping[str, Any]) -> int:
    return len(kwargs["x" if "x" in kwargs else "hidden_states"])


def _key(table: CallRows, name: str, value: Any, rows: int) -> Hashable:
    if value is None:
        return None
    if name in table.each:
        return _key_of_rows(value, rows)
    if name in table.layers:
        return tuple(_key_of_rows(layer, rows) for layer in value)
    if _has_rows(table, name, value):
        first, *others = (_value(row) for row in value)
        if any(other != first for other in others):
            raise _StaysAlone
        return "rows", first
    if name in table.whole or name in table.same:
        return _value(value)
    return _plain(value)


def _key_of_rows(value: Any, rows: int) -> Hashable:
    """The shape of a row, and the number of rows per image."""
    if isinstance(value, list):
        return len(value) // rows, tuple({_shape_of_entry(entry) for entry in value})
    if not isinstance(value, torch.Tensor):
        raise _StaysAlone
    if value.ndim == 0 or value.shape[0] == 1:  # one for all rows
        return 1, tuple(value.shape[1:]), value.dtype
    if value.shape[0] % rows:
        raise _StaysAlone
    return value.shape[0] // rows, tuple(value.shape[1:]), value.dtype


def _shape_of_entry(entry: Any) -> Hashable:
    """Z-Image's texts differ in length; ``told_together`` compares what must be equal."""
    if isinstance(entry, torch.Tensor):
        return entry.shape[1:] if entry.ndim == 2 else entry.shape, entry.dtype
    return type(entry).__name__


def _has_rows(table: CallRows, name: str, value: Any) -> bool:
    if name not in table.same:
        return False
    return isinstance(value, list) or value.ndim > table.same[name]


def _stacked(table: CallRows, name: str, values: Sequence[Any], rows: Sequence[int]) -> Any:
    first = values[0]
    if first is None:
        return None
    if name in table.layers:
        layers = [torch.cat(layer) for layer in zip(*values, strict=True)]
        return torch.stack(layers) if isinstance(first, torch.Tensor) else type(first)(layers)
    if not (name in table.each or _has_rows(table, name, first)):
        return first
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    return torch.cat([_with_rows(value, count) for value, count in zip(values, rows, strict=True)])


def _with_rows(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeat a value for all rows once for each row."""
    if value.ndim == 0:
        return value.expand(rows)
    return value.expand(rows, *value.shape[1:]) if value.shape[0] == 1 else value


def _value(value: Any) -> Hashable:
    """A key that is equal if the values are."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, _digest(value)
    if isinstance(value, list | tuple):
        return tuple(_value(part) for part in value)
    return _plain(value)


def _plain(value: Any) -> Hashable:
    """A string, a number, or a collection of those; everything else belongs to one job."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _plain(part)) for name, part in sorted(value.items()))
    raise _StaysAlone


def _digest(value: torch.Tensor) -> bytes:
    if value.is_inference():  # has no version
        return _digest_of_values(value)
    version, digest = _DIGESTS.get(value, (None, b""))
    if version != value._version:
        digest = _digest_of_values(value)
        _DIGESTS[value] = value._version, digest
    return digest


def _digest_of_values(value: torch.Tensor) -> bytes:
    values = torch.view_as_real(value) if value.is_complex() else value
    return hashlib.blake2b(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()
