"""What earlier sessions learned about a block, valid as long as its code is the same.

A session is often one image, and a service opens one for each: to check every block anew in each costs a few percent of
a small image. What a block does to memory changes only with its code: its own forward, or a forward or attention
processor that somebody put inside it. Code exchanged in a class, below all of that, is not seen here; what such code
writes is, by the version counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any

from torch import nn

from cache_core.walking import all_modules

__all__ = ["TRUSTED", "KnownBlock", "known_block"]

#: Runs on a shape that a later session need not see again: the second shows memory that is returned again.
_ENOUGH = 2
#: Runs on a shape after which nothing more is to be found out. At least four of them are of one session, also where
#: it did not begin with the first: enough to see memory that is returned by turns.
TRUSTED = _ENOUGH + 4
_MOST_SHAPES = 64


class KnownBlock:
    """One block with the code that it has.

    Attributes:
        writes: into its streams; reuses: the memory that it returns.
        overwritten: the transformer writes into what it returned.
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
        """Runs on a shape in earlier sessions that count: none, :data:`_ENOUGH` or :data:`TRUSTED`."""
        runs = self._runs.get(shape, 0)
        return next((enough for enough in (TRUSTED, _ENOUGH) if runs >= enough), 0)

    def ran(self, shape: Hashable, run: int) -> None:
        """It ran on a shape, for the ``run``-th time of a session."""
        if shape not in self._runs and len(self._runs) >= _MOST_SHAPES:
            self._runs.pop(next(iter(self._runs)))
        self._runs[shape] = min(TRUSTED, max(run, self._runs.get(shape, 0)))


_KNOWN: weakref.WeakKeyDictionary[nn.Module, KnownBlock] = weakref.WeakKeyDictionary()


def known_block(block: nn.Module, forward: Any) -> KnownBlock:
    """What is known of ``block`` that runs ``forward``; nothing yet where its code is another than the last time."""
    parts = [forward, *_parts(block)]
    known = _KNOWN.get(block)
    if known is None or not known.is_of(parts):
        try:
            known = KnownBlock([weakref.ref(part) for part in parts])
        except TypeError:  # not everything can be known again: this block is checked in every session
            return KnownBlock([])
        _KNOWN[block] = known
    return known


def _parts(block: nn.Module) -> Iterator[Any]:
    """What somebody may have put inside a block: modules of other classes, their own forwards, attention processors."""
    for module in all_modules(block):
        yield type(module)
        own = module.__dict__  # asking the module itself is slow where it has none
        if module is not block and (forward := own.get("forward")) is not None:
            yield forward
        if (processor := own.get("processor")) is not None:  # one that is a module is among the modules
            yield processor
