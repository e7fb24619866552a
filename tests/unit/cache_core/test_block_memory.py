"""What one block remembers of one image, by hand: how far an input has moved, and what the block would add again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache_core.blocks import States
from cache_core.policies.block_memory import SharedBlock
from cache_core.policies.compared_block import ComparedBlock

MEMORIES = ["compared", "shared", "settled"]


def _states(hidden: float, encoder: float | None) -> States:
    """Three image tokens and two text tokens, of two channels."""
    return States(torch.full((3, 2), hidden), None if encoder is None else torch.full((2, 2), encoder))


def _memory(kind: str, fused: bool, states: States, output: States) -> Any:
    block: Any = SimpleNamespace(spec=SimpleNamespace(fused_text=fused))
    if kind == "compared":
        memory = ComparedBlock(block, 0)
        memory.record(0, _states(9.0, states.encoder if states.encoder is None else 9.0), output)
        memory.compare(states)  # of the step before: nothing of it may stay
        memory.record(1, states, output)
        return memory
    shared = SharedBlock(block, 1, states, output)
    if kind == "settled":
        shared.settle()
    return shared


@pytest.mark.parametrize("kind", MEMORIES)
@pytest.mark.parametrize(
    ("fused", "text", "moved", "reference"),
    [
        (True, (2.0, -5.0), 6 * 3.0 + 4 * 7.0, 6 * 1.0 + 4 * 2.0),
        (False, (2.0, -5.0), 6 * 3.0, 6 * 1.0),
        (True, (None, None), 6 * 3.0, 6 * 1.0),
        (False, (None, None), 6 * 3.0, 6 * 1.0),
    ],
)
def test_the_text_counts_where_the_block_fuses_it(kind: str, fused: bool, text: Any, moved: float, reference: float):
    memory = _memory(kind, fused, _states(-1.0, text[0]), _states(0.5, text[0]))
    for _ in range(2):
        assert [float(each) for each in memory.compare(_states(2.0, text[1]))] == [moved, reference]


@pytest.mark.parametrize("kind", MEMORIES)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("text", [(2.0, 4.5, -5.0, -2.5), (None, None, None, None)])
def test_it_adds_again_what_it_added(kind: str, fused: bool, text: Any):
    states, output, now = _states(1.0, text[0]), _states(4.0, text[1]), _states(10.0, text[2])
    memory = _memory(kind, fused, states, output)
    for _ in range(2):
        hidden, encoder = memory.reuse(2, now)
        assert torch.equal(hidden, torch.full((3, 2), 13.0))
        assert encoder is None if text[3] is None else torch.equal(encoder, torch.full((2, 2), text[3]))
    for kept, value in ((states, (1.0, text[0])), (output, (4.0, text[1])), (now, (10.0, text[2]))):
        for left, right in zip(kept, _states(*value), strict=True):
            assert left is None or torch.equal(left, right), "what was handed over is not written to"
