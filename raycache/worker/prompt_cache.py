"""Recently used prompt embeddings, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

__all__ = ["PromptCache"]


class PromptCache:
    """Caches results of pipelines' ``encode_prompt``; evicts the least recently used first.

    Args:
        most_bytes: limit for all tensors together; a larger result is not cached.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes of all cached results."""
        return self._held

    def encoded(self, key: Hashable, encode: Callable[[], Any]) -> tuple[Any, bool]:
        """The result of ``encode``, cached by ``key``; and whether it was cached already."""
        if (known := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            return known, True
        made = encode()
        if (size := _bytes_of(made)) <= self._most:
            self._entries[key] = made
            self._held += size
            while self._held > self._most:
                _, oldest = self._entries.popitem(last=False)
                self._held -= _bytes_of(oldest)
        return made, False


def _bytes_of(encoded: Any) -> int:
    """Bytes of all tensors in it."""
    if isinstance(encoded, torch.Tensor):
        return encoded.nbytes
    values = encoded.values() if isinstance(encoded, Mapping) else encoded if isinstance(encoded, list | tuple) else ()
    return sum(_bytes_of(value) for value in values)
