"""What earlier sessions learned about a block, valid as long as its code is the same.

A session is often one image, and a service opens one for each: checking every block again in each costs a few percent
of a small image's time. What a block does to memory changes only with its code: its own forward, or a forward or
attention processor that was put inside it. Code replaced in a class, below all of that, is not noticed here, but its
writes are, by the version counter.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from torch import nn

from cache_core.walking import all_modules

__all__ = ["ENOUGH", "TRUSTED", "KnownBlock", "interrupt", "known_block"]

#: Runs on a shape, one after the other in one session, that a later session need not repeat: the second shows memory
#: that is returned again.
ENOUGH = 2
#: Such runs after which there is nothing left to detect. At least four of them are in one session, even if that session
#: did not start with the first: enough to see outputs that alternate between memories.
TRUSTED = ENOUGH + 4
_MOST_SHAPES = 256


class KnownBlock:
    """What is known about one block with its current code.

    Args:
        block: the module.
        parts: its code; None: it cannot be recognised again, so that every run is like the first.

    Attributes:
        writes: whether the block writes into its streams.
        reuses: whether it returns the same memory again.
        overwritten: whether the transformer writes into its output.
    """

    def __init__(self, block: nn.Module, parts: list[weakref.ref[Any]] | None) -> None:
        self.writes = self.reuses = self.overwritten = False
        self._block, self._parts = weakref.ref(block), parts
        self._runs: dict[Hashable, int] = {}  # the most that followed each other, by shape

    def is_of(self, parts: list[Any]) -> bool:
        """Whether the code is still the same."""
        return (
            self._parts is not None
            and len(parts) == len(self._parts)
            and all(known() is part for known, part in zip(self._parts, parts, strict=True))
        )

    def met(self, shape: Hashable) -> bool:
        """Whether a run on a shape was checked for what it writes."""
        return shape in self._runs

    def begin(self, shape: Hashable, session: object) -> int:
        """A run begins: its number among those on one shape that followed each other in one session.

        Only these show whether memory is returned again: a block may let go of its buffer for another shape, in another
        session of the same shape, or in a run that fails.
        """
        last = self._taken()
        if last is not None and last.known is self and last.shape == shape and last.session() is session:
            return last.run + 1
        known = self._runs.get(shape, 0)
        return 1 + next((enough for enough in (TRUSTED, ENOUGH) if known >= enough), 0)

    def ran(self, shape: Hashable, session: object, run: int) -> None:
        """Record that it ran, as the ``run``-th."""
        block = self._block()
        if self._parts is None or block is None:
            return
        if shape not in self._runs and len(self._runs) >= _MOST_SHAPES:
            self._runs.pop(next(iter(self._runs)))
        self._runs[shape] = min(TRUSTED, max(run, self._runs.get(shape, 0)))
        _LAST[block] = _Run(self, shape, weakref.ref(session), run)

    def forget(self) -> None:
        """What the transformer did to the output of its last run was not seen."""
        last = self._taken()
        if last is not None and last.run == 1:
            last.known._runs.pop(last.shape, None)

    def _taken(self) -> _Run | None:
        block = self._block()
        return None if block is None else _LAST.pop(block, None)


class _Run(NamedTuple):
    """The last run of a block."""

    known: KnownBlock
    shape: Hashable
    session: weakref.ref[Any]
    run: int


#: By block, whatever its code was: what interrupts a row of runs of one code is also a run of another.
_LAST: weakref.WeakKeyDictionary[nn.Module, _Run] = weakref.WeakKeyDictionary()


def interrupt(block: nn.Module) -> None:
    """``block`` runs without being watched."""
    _LAST.pop(block, None)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, KnownBlock] = weakref.WeakKeyDictionary()


def known_block(block: nn.Module, forward: Any) -> KnownBlock:
    """What is known about ``block`` running ``forward``; nothing yet if its code is not the same as the last time."""
    parts = [forward, *_parts(block)]
    known = _KNOWN.get(block)
    if known is None or not known.is_of(parts):
        try:
            known = KnownBlock(block, [weakref.ref(part) for part in parts])
        except TypeError:  # not everything has a weak reference
            return KnownBlock(block, None)
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
