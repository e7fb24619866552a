"""What a call of a module runs through: forwards around forwards, whoever put them there."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

from torch import nn

from cache_core.hooks import original_forwards

__all__ = ["wrapped_forwards"]


def wrapped_forwards(module: nn.Module) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every function that a call of ``module`` leads to, from outside in, with the variables that it closes over.

    Followed are diffusers' hooks, ``functools.wraps`` and ``partial`` (accelerate's hooks, a user's own patch), and the
    functions and methods of this module that a closure keeps, as ParaAttention's does.
    """
    pending, seen = original_forwards(module), set()
    while pending:
        forward = pending.pop(0)
        function = getattr(forward, "__func__", forward)
        if id(function) in seen:
            continue
        seen.add(id(function))
        cells = _closure(function)
        yield function, cells
        pending += [value for value in cells.values() if _may_be_next(value, module)]
        pending += [function.__wrapped__] if hasattr(function, "__wrapped__") else []
        pending += [function.func] if isinstance(function, functools.partial) else []


def _may_be_next(value: Any, module: nn.Module) -> bool:
    """Another module's method would lead to that module's wrappers."""
    return isinstance(value, FunctionType | functools.partial) or getattr(value, "__self__", None) is module


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        with suppress(ValueError):  # a variable that was not set yet
            cells[name] = cell.cell_contents
    return cells
