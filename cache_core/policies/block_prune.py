"""DBPrune: each block between Fn and Bn compares its own input and, if it hardly changed, reuses its residual.

Behaviour as published with cache-dit v0.1.5, per image instead of per batch. A pruned block stores nothing, so
successive prunes are compared with an older and older input until the block is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_core.blocks import BlockCall, States
from cache_core.options import DBPruneOptions
from cache_core.policies.pruning_memory import PruningMemory, pruning_memory
from cache_core.policies.rows import for_rows
from cache_core.policy import Deciding
from cache_core.report import ImageDecision, Reason

__all__ = ["BlockPrune"]


@dataclass
class _Image:
    """What is remembered of one image.

    Attributes:
        options: the image's own; those that determine which blocks may be pruned are the same for all images of a call.
        memory: its blocks as they last ran.
        step: number of calls of this branch before the running one.
        pruned_steps: steps with at least one pruned block so far.
        gate: why no block of this step may be pruned; None if blocks are compared.
        keeping: whether what this step computes is remembered.
        moves: this step's positive differences so far, for the dynamic threshold.
        asked, non_finite: whether any block of this step was compared; whether any result was not finite.
    """

    options: DBPruneOptions
    memory: PruningMemory
    step: int = 0
    pruned_steps: int = 0
    gate: Reason | None = None
    keeping: bool = False
    moves: list[float] = field(default_factory=list)
    asked: bool = False
    non_finite: bool = False

    def forget(self) -> None:
        self.memory.clear()

    def undo(self, step: int) -> None:
        self.memory.undo(step)

    def tensors(self) -> Iterator[torch.Tensor]:
        for block in self.memory.blocks.values():
            yield from block.tensors()


class BlockPrune:
    """Runs the blocks of calls whose images may prune the same blocks; everything else is per image."""

    def __init__(self, options: DBPruneOptions, deciding: Deciding) -> None:
        self._deciding = deciding
        count = len(deciding.blocks)
        self._prunable = frozenset(range(options.Fn_compute_blocks, count - options.Bn_compute_blocks)) - frozenset(
            options.non_prune_blocks_ids
        )

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[_Image]:
        count = len(self._deciding.blocks)
        return [_Image(own, pruning_memory(own, count)) for own in for_rows(each, rows, latents)]

    def begin_step(self, images: Sequence[_Image], decisions: Sequence[ImageDecision]) -> None:
        self._images, self._decisions = images, decisions
        for image in images:
            image.gate = _gate(image)
            due = image.step % image.options.residual_cache_update_interval == 0
            image.keeping = due and _may_be_reused(image, image.step)
            image.moves, image.asked, image.non_finite = [], False, False

    def run(self, call: BlockCall) -> Any:
        index = call.block.index
        if index == 0 and not any(image.gate is None and image.memory.blocks for image in self._images):
            self._deciding.look(call.states.hidden.device)
        reused, refused = self._judge(call) if index in self._prunable else ({}, frozenset())
        for k, decision in enumerate(self._decisions):
            decision.computed_blocks += k not in reused
        output = call.complete(reused)
        for k, image in enumerate(self._images):
            stores = index in self._prunable and image.keeping and k not in reused and k not in refused
            image.memory.passed(image.step, k, call, output if stores else None)
        return call.pack(output)

    def end_step(self) -> None:
        for image, decision in zip(self._images, self._decisions, strict=True):
            if decision.pruned_blocks:
                decision.reason = "below"
                image.pruned_steps += 1
            elif image.gate is not None:
                decision.reason = image.gate
            else:
                decision.reason = "first" if not image.asked else "non_finite" if image.non_finite else "threshold"
            if not _may_be_reused(image, image.step + 1):
                image.memory.clear()

    def _judge(self, call: BlockCall) -> tuple[dict[int, States], frozenset[int]]:
        """Rows of the images pruned here, and images whose result was not finite."""
        index = call.block.index
        answered = self._deciding.answered(index)
        sums = [
            image.memory.blocks[index].compare(call.states.row(k))
            if answered[k] is None and image.gate is None and index in image.memory.blocks
            else None
            for k, image in enumerate(self._images)
        ]
        if all(own is None for own in (*sums, *answered)):
            return {}, frozenset()
        reused: dict[int, States] = {}
        refused: set[int] = set()
        verdicts = self._deciding.agree(index, sums, call.states.hidden.device)
        for k, verdict in enumerate(verdicts):
            if verdict is None:
                continue
            image, decision = self._images[k], self._decisions[k]
            threshold = _threshold(image)
            image.asked = True
            decision.differences[index] = (verdict.difference, threshold)
            if verdict.difference is not None and verdict.difference > 0:
                image.moves.append(verdict.difference)
            if verdict.below(threshold):
                decision.pruned_blocks.append(index)
                reused[k] = image.memory.blocks[index].reuse(image.step, call.states.row(k))
            elif not verdict.finite:
                image.non_finite = True
                refused.add(k)
                image.memory.drop(index)
        self._deciding.decided(*(k in reused for k in range(call.batch)))
        return reused, frozenset(refused)


def _threshold(image: _Image) -> float:
    """The threshold of the next comparison. If dynamic: the relaxed mean of this step's differences, up to the cap; at
    the cap it drops back to the static one, as published."""
    options = image.options
    static = options.residual_diff_threshold
    if not options.enable_dynamic_prune_threshold or not image.moves:
        return static
    relaxed = options.dynamic_prune_threshold_relax_ratio * sum(image.moves) / len(image.moves)
    return max(static, relaxed) if relaxed < options.threshold_cap else static


def _gate(image: _Image) -> Reason | None:
    """Why no block of this step may be pruned; None if blocks are compared."""
    options = image.options
    if image.step < options.warmup_steps:
        return "warmup"
    if 0 <= options.max_pruned_steps <= image.pruned_steps:
        return "limit"
    return "threshold" if options.residual_diff_threshold <= 0 else None


def _may_be_reused(image: _Image, step: int) -> bool:
    """Whether what is stored at ``step`` can be read later; uses only counters, so it is the same on all ranks."""
    options = image.options
    interval = options.residual_cache_update_interval
    last_warmup_store = (max(options.warmup_steps, 1) - 1) // interval * interval
    return (
        step >= last_warmup_store - options.taylor_order * interval
        and options.residual_diff_threshold > 0
        and not 0 <= options.max_pruned_steps <= image.pruned_steps
    )
