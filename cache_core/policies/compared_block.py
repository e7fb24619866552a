"""A block compared by its own input: the input of its last run, and the residual of that run.

Used for DBCache's Bn blocks outside ``Bn_compute_blocks_ids``. DBPrune compares blocks in the same way but shares
tensors between neighbours (:mod:`cache_core.policies.block_prune`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cache_core.blocks import Block, States
from cache_core.consensus import Sums
from cache_core.difference import absolute_sum, difference_sum
from cache_core.policies.residual import SPAN, Residual

__all__ = ["ComparedBlock", "input_sum", "moved_sum"]


def input_sum(block: Block, states: States) -> torch.Tensor:
    """``sum |input|`` over what the block compares: image tokens, and text tokens where the block fuses them."""
    total = absolute_sum(states.hidden)
    if block.spec.fused_text and states.encoder is not None:
        total = total + absolute_sum(states.encoder)
    return total


def moved_sum(block: Block, states: States, reference: States) -> torch.Tensor:
    """``sum |input - reference|`` over the same tokens."""
    total = difference_sum(states.hidden, reference.hidden)
    if block.spec.fused_text and states.encoder is not None and reference.encoder is not None:
        total = total + difference_sum(states.encoder, reference.encoder)
    return total


class ComparedBlock:
    """One image's memory of one block. ``limit``: how much a forecast of order 2 may magnify errors."""

    __slots__ = ("_block", "_input", "_input_sum", "_residual", "_step")

    def __init__(self, block: Block, taylor_order: int, limit: float = SPAN) -> None:
        self._block = block
        self._residual = Residual(taylor_order, limit)
        self._step = -1
        self._input: States | None = None
        self._input_sum: torch.Tensor | None = None

    def record(self, step: int, states: States, output: States) -> None:
        """Record that the block ran on ``states`` and returned ``output``."""
        self._residual.record(step, *output.minus(states))
        self._step = step
        self._input = states if self._block.spec.fused_text else States(states.hidden, None)
        self._input_sum = None

    def compare(self, states: States) -> Sums:
        """The difference of this input from the one that the block last ran on."""
        assert self._input is not None
        if self._input_sum is None:
            self._input_sum = input_sum(self._block, self._input)
        return moved_sum(self._block, states, self._input), self._input_sum

    def reuse(self, step: int, states: States) -> States:
        """The block's output, assuming that it adds what it added before."""
        return States(*self._residual.add_to(step, *states))

    def undo(self, step: int) -> bool:
        """Drop what was recorded at ``step``. The earlier input is gone, so there is nothing to compare with until the
        step is recorded again; earlier residuals stay for the forecast.

        Returns:
            Whether anything is left.
        """
        if self._step == step:
            self._residual.undo(step)
            self._input = self._input_sum = None
        return bool(self._residual)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held."""
        if self._input is not None:
            yield self._input.hidden
            if self._input.encoder is not None:
                yield self._input.encoder
        yield from self._residual.tensors()
