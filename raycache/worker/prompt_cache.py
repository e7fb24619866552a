"""Recently used encoded prompts, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch

__all__ = ["PromptCache"]


class PromptCache:
    """What pipelines' ``encode_prompt`` gave; the least recently used goes first.

    Args:
        most_bytes: of all tensors together; what is larger by itself is not kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Of what is kept."""
        return self._held

    def encoded(self, key: Hashable, encode: Callable[[], Any]) -> tuple[Any, bool]:
        """What ``encode`` gives, or gave for this key before; and whether it was known."""
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
    """Of all tensors in it."""
    if isinstance(encoded, torch.Tensor):
        return encoded.nbytes
    values = encoded.values() if isinstance(encoded, Mapping) else encoded if isinstance(encoded, list | tuple) else ()
    return sum(_bytes_of(value) for value in values)
