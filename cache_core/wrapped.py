"""The functions around a module's own forward, and the variables that they close over."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from cache_core.chain import chain

__all__ = ["wrapped_forwards"]


def wrapped_forwards(module: nn.Module) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The functions around a module's own forward, outermost first, with the variables that each closes over."""
    for link in chain(module):
        forward = link.forward.func if isinstance(link.forward, functools.partial) else link.forward
        function = getattr(forward, "__func__", forward)
        yield function, _closure(function)


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        with suppress(ValueError):  # a variable that is not set yet
            cells[name] = cell.cell_contents
    return cells
