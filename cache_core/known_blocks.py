"""What earlier sessions learned about a block, valid as long as its code is the same.

A session is often one image, in which a block may run once or twice only, and a service opens one for each: to check
every block again in each would cost more than a decision. What a block does to memory changes only with its code: its
own forward, or a forward or attention processor that was put inside it. Code replaced in a class, below all of that, is
not noticed here, but its writes are, by the version counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from cache_core.walking import all_modules

__all__ = ["TRUSTED", "KnownBlock", "is_output", "known_block", "note_outputs"]

#: Runs on a shape after which there is nothing left to detect: the second shows memory that is returned again, the
#: later ones memory that comes by turns.
TRUSTED = 6
_MOST_SHAPES = 256
_MOST_OUTPUTS = 4096


class KnownBlock:
    """What is known about one block with its current code.

    Attributes:
        writes: whether the block writes into its streams.
        reuses: whether it returns the same memory again.
        overwritten: whether the transformer writes into its output.
    """

    def __init__(self, parts: list[weakref.ref[Any]]) -> None:
        self.writes = self.reuses = self.overwritten = False
        self._parts = parts
        self._runs: dict[Hashable, int] = {}

    def is_of(self, parts: list[Any]) -> bool:
        """Whether the code is still the same."""
        return len(parts) == len(self._parts) and all(
            known() is part for known, part in zip(self._parts, parts, strict=True)
        )

    def runs(self, shape: Hashable) -> int:
        """How many checked runs on a shape there were, in all sessions together; counted up to :data:`TRUSTED`."""
        return self._runs.get(shape, 0)

    def ran(self, shape: Hashable) -> None:
        """Record that it ran on a shape and that the run was checked."""
        if shape not in self._runs and len(self._runs) >= _MOST_SHAPES:
            self._runs.pop(next(iter(self._runs)))
        self._runs[shape] = min(TRUSTED, self._runs.get(shape, 0) + 1)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, KnownBlock] = weakref.WeakKeyDictionary()
#: Memory that blocks returned, by address. Blocks may share a buffer, and it may outlive a session.
_OUTPUTS: dict[int, StorageWeakRef] = {}


def is_output(address: int) -> bool:
    """Whether this memory is what a block returned before; memory that was freed in between is not."""
    known = _OUTPUTS.get(address)
    return known is not None and not known.expired()


def note_outputs(storages: dict[int, StorageWeakRef]) -> None:
    """Remember, without keeping it alive, what memory a block returned."""
    if len(_OUTPUTS) >= _MOST_OUTPUTS:
        for address in [address for address, storage in list(_OUTPUTS.items()) if storage.expired()]:
            _OUTPUTS.pop(address, None)
    _OUTPUTS.update(storages)


def known_block(block: nn.Module, forward: Any) -> KnownBlock:
    """What is known about ``block`` running ``forward``; nothing yet if its code is not the same as the last time."""
    parts = [forward, *_parts(block)]
    known = _KNOWN.get(block)
    if known is None or not known.is_of(parts):
        try:
            known = KnownBlock([weakref.ref(part) for part in parts])
        except TypeError:  # not everything has a weak reference: this block is checked in every session
            return KnownBlock([])
        _KNOWN[block] = known
    return known


def _parts(block: nn.Module) -> Iterator[Any]:
    """What other code may have put inside a block: other modules, replaced forwards, attention processors."""
    for module in all_modules(block):
        yield type(module)
        own = module.__dict__  # attribute access on the module is slow if it has none
        if module is not block and (forward := own.get("forward")) is not None:
            yield forward
        if (processor := own.get("processor")) is not None:  # one that is itself a module is among the modules
            yield processor
