"""DBPrune's state of one image: its blocks' last runs, stored in one of two ways behind one interface.

Without a forecast, a block's memory shares tensors with its neighbours (:class:`SharedMemory`). A forecast needs
residuals of several steps, which cannot be shared (:class:`ForecastMemory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

import torch

from cache_core.blocks import BlockCall, States
from cache_core.consensus import Sums
from cache_core.options import DBPruneOptions
from cache_core.policies.block_memory import SharedBlock
from cache_core.policies.compared_block import ComparedBlock
from cache_core.policies.residual import PER_BLOCK

__all__ = ["BlockMemory", "ForecastMemory", "PruningMemory", "SharedMemory", "pruning_memory"]


class BlockMemory(Protocol):
    """One block as it last ran. ``states`` are one image's row of the block's input."""

    def compare(self, states: States) -> Sums:
        """The difference of ``states`` from the input that the block last ran on."""

    def reuse(self, step: int, states: States) -> States:
        """``states`` plus what the block would add at ``step``."""

    def undo(self, step: int) -> bool:
        """Drop what was stored at ``step``. Returns whether anything is left."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held."""


class PruningMemory(Protocol):
    """The blocks of one image.

    Attributes:
        blocks: memories by block id, only of blocks that may be pruned and have run.
    """

    @property
    def blocks(self) -> Mapping[int, BlockMemory]: ...

    def passed(self, step: int, k: int, call: BlockCall, output: States | None) -> None:
        """Record that a block was called, for any images; to be called in the order of the blocks.

        Args:
            step: the image's step.
            k: the image's row of the call.
            output: all rows of the block's output if it is to be remembered; else None.

        Raises:
            RuntimeError: the transformer wrote into what is remembered of the previous block.
        """

    def drop(self, index: int) -> None:
        """Drop one block, if it is remembered."""

    def clear(self) -> None:
        """Drop everything."""

    def undo(self, step: int) -> None:
        """Drop what was stored at ``step``."""


_Block = TypeVar("_Block", bound=BlockMemory)


class _Blocks(Generic[_Block]):
    """Common to both memories."""

    def __init__(self) -> None:
        self.blocks: dict[int, _Block] = {}

    def drop(self, index: int) -> None:
        self.blocks.pop(index, None)

    def clear(self) -> None:
        self.blocks.clear()

    def undo(self, step: int) -> None:
        self.blocks = {index: block for index, block in self.blocks.items() if block.undo(step)}


class ForecastMemory(_Blocks[ComparedBlock]):
    """Each block by itself, with the residuals of ``order + 1`` steps."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self._order = order

    def passed(self, step: int, k: int, call: BlockCall, output: States | None) -> None:
        if output is not None:
            block = self.blocks.setdefault(call.block.index, ComparedBlock(call.block, self._order, PER_BLOCK))
            block.record(step, call.states.owned_row(k), output.row(k))


class SharedMemory(_Blocks[SharedBlock]):
    """Chains of blocks that share tensors. ``last``: id of the transformer's last block, whose output is not shared."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last

    def passed(self, step: int, k: int, call: BlockCall, output: States | None) -> None:
        """Also ends the chain of shared tensors where this block does not continue it."""
        index = call.block.index
        previous = self.blocks.get(index - 1)
        if previous is None or (kept := previous.output) is None:
            if output is not None:
                self._store(step, call, call.states.owned_row(k), output.owned_row(k))
            return
        if previous.step == step and call.overwritten:
            raise RuntimeError(
                f"the transformer wrote into the output of the block before {call.block.name}, which it did not do "
                "when they first ran, but DBPrune compares with that output. Use DBCache, which does not"
            )
        if output is None:
            if previous.step == step or index not in self.blocks:
                previous.settle()
            return
        if call.handed and previous.step == step:
            text = kept.encoder
            if text is None and call.states.encoder is not None:
                text = States(call.states.encoder, None).owned_row(k).hidden
            states = States(kept.hidden, text)
        else:
            states = call.states.owned_row(k)
            previous.settle()
        self._store(step, call, states, output.owned_row(k))

    def _store(self, step: int, call: BlockCall, states: States, output: States) -> None:
        index = call.block.index
        self.blocks[index] = block = SharedBlock(call.block, step, states, output)
        if index == self._last:
            block.settle()  # no block shares it, and later writes to it would not be noticed


def pruning_memory(options: DBPruneOptions, blocks: int) -> PruningMemory:
    """The memory that an image's options need, in a transformer of ``blocks`` blocks."""
    return ForecastMemory(options.taylor_order) if options.taylor_order else SharedMemory(blocks - 1)
