"""DBPrune's memory of one block for one image, sharing tensors with its neighbours.

A block's output is the next block's input, so instead of (input, residual) per block a chain of blocks computed in the
same step keeps its n + 1 states and takes ``output - input`` when pruning: bit-equal to keeping the residual, at about
half the memory. At FLUX.1-dev 1024 x 1024 in bfloat16 (image stream h = 4096 x 3072 x 2 B = 24 MiB, text stream
e = 3 MiB), nothing excluded by Fn, Bn: ``19 h + 19 e`` for the double blocks, which compare the image stream only and
keep the residual of the text stream, plus ``39 (h + e)`` for the single blocks = 1.53 GiB. Published:
``19 (2 h + e) + 38 (2 h + 2 e)`` = 2.95 GiB. F8B8 prunes 41 blocks: 1.11 GiB.

Where the next block does not share this output (it is pruned, never prunable, or the model inserted something in
between), the chain ends and the residual is kept instead (:meth:`SharedBlock.settle`): a chain of n blocks then holds
``(n + 1) h + n e`` instead of ``n (2 h + e)``, so never more than published, for any n >= 1 and any text length.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cache_core.blocks import Block, States
from cache_core.consensus import Sums
from cache_core.policies.compared_block import input_sum, moved_sum

__all__ = ["SharedBlock"]


class SharedBlock:
    """The block's input when it last ran, and its output by reference or, once settled, as a residual.

    Args:
        block: the block.
        step: the step it ran in.
        states: its input, [tokens, channels] per stream, owned or shared with the previous block's output.
        output: its output.
    """

    __slots__ = ("_block", "_hidden_added", "_input", "_input_sum", "_output", "_text_added", "step")

    def __init__(self, block: Block, step: int, states: States, output: States) -> None:
        self._block, self.step = block, step
        self._input_sum: torch.Tensor | None = None
        self._hidden_added: torch.Tensor | None = None
        self._text_added: torch.Tensor | None = None
        self._output: States | None
        if block.spec.fused_text:
            self._input, self._output = states, output
        else:  # text is not compared, so its input is not kept
            self._input, self._output = States(states.hidden, None), States(output.hidden, None)
            if output.encoder is not None and states.encoder is not None:
                self._text_added = output.encoder - states.encoder

    @property
    def output(self) -> States | None:
        """The output kept by reference for the next block to share; None once settled."""
        return self._output

    def settle(self) -> None:
        """Keep the residual instead of the output, which no block shares."""
        if self._output is not None:
            self._hidden_added, self._text_added = self._residual()
            self._output = None

    def undo(self, step: int) -> bool:
        """Whether anything remains when what ran at ``step`` is dropped."""
        return self.step != step

    def compare(self, states: States) -> Sums:
        """The difference of this input from the one that the block last ran on."""
        if self._input_sum is None:
            self._input_sum = input_sum(self._block, self._input)
        return moved_sum(self._block, states, self._input), self._input_sum

    def reuse(self, step: int, states: States) -> States:
        """``states`` plus what the block added when it last ran, the same at every step."""
        hidden, text = self._residual()
        given = states.encoder
        if self._output is None:
            return States(states.hidden + hidden, None if text is None or given is None else given + text)
        # The hidden residual was just created for this call: adding in place avoids a large temporary.
        kept = self._output.encoder is None
        if text is not None and given is not None:
            text = given + text if kept else text.add_(given)
        return States(hidden.add_(states.hidden), text)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held."""
        held = (*self._input, *(self._output or ()), self._hidden_added, self._text_added)
        yield from (tensor for tensor in held if tensor is not None)

    def _residual(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        before, after = self._input, self._output
        if after is None:
            assert self._hidden_added is not None  # set by settle()
            return self._hidden_added, self._text_added
        hidden = after.hidden - before.hidden
        if after.encoder is None or before.encoder is None:
            return hidden, self._text_added
        return hidden, after.encoder - before.encoder
