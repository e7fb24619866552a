"""Counts and times the calls of blocks without making the device wait."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cache_core.blocks import find_blocks

__all__ = ["WatchedBlocks"]


class WatchedBlocks:
    """Watches all blocks of a transformer; create it before a cache is attached.

    On CUDA a block's time is between two events in the stream, so it is the device's own and the queue stays full.
    """

    def __init__(self, transformer: nn.Module, device: str, timed: bool) -> None:
        self._cuda = device == "cuda"
        self.calls: Counter[str] = Counter()
        self._marks: defaultdict[str, list[tuple[Any, Any]]] = defaultdict(list)
        for found in find_blocks(transformer):
            block: Any = found.module  # a method is replaced, which its type does not allow
            block.forward = self._wrapped(block.forward, type(block).__name__, timed)

    def clear(self) -> None:
        """Reset the counts and times."""
        self.calls.clear()
        self._marks.clear()

    def seconds(self) -> dict[str, float]:
        """Seconds in all calls so far, by class of the block; the device must have finished them."""
        return {name: sum(self._between(*pair) for pair in pairs) for name, pairs in self._marks.items()}

    def _wrapped(self, forward: Callable[..., Any], name: str, timed: bool) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if not timed:
                return forward(*args, **kwargs)
            began = self._mark()
            output = forward(*args, **kwargs)
            self._marks[name].append((began, self._mark()))
            return output

        return call

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, began: Any, ended: Any) -> float:
        return float(began.elapsed_time(ended)) / 1e3 if self._cuda else ended - began
