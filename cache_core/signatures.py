"""The names of a forward's arguments: read once, because ``inspect`` is slow and every session needs them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["parameters_of"]


@functools.lru_cache(maxsize=64)
def parameters_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The argument names of a class's forward, in order, without ``self``."""
    return tuple(name for name in inspect.signature(forward).parameters if name != "self")
