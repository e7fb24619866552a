"""DBCache: the first Fn blocks decide, the middle is reused, the last Bn blocks correct. FBCache is F1B0 of it.

Behaviour as published with cache-dit v0.1.5, per image instead of per batch: the residual of the Fn blocks is compared
with that of the last computed step; strictly below the threshold, the middle blocks are replaced by what they added
when they last ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_core.blocks import Block, BlockCall, States
from cache_core.consensus import Sums
from cache_core.difference import absolute_sum, difference_sum
from cache_core.options import DBCacheOptions
from cache_core.policies.compared_block import ComparedBlock
from cache_core.policies.residual import Residual
from cache_core.policies.rows import for_rows
from cache_core.policy import Deciding
from cache_core.report import ImageDecision, Reason

__all__ = ["DualBlock"]


@dataclass
class _Image:
    """What is remembered of one image between steps.

    Attributes:
        options: its own. What says which blocks run is the same for all images of a call.
        step: how many calls of this branch came before the running one.
        reference: residual of the Fn blocks at the last computed step, [tokens, channels].
        reference_sum: its absolute sum, taken at the first comparison.
        taken: the step of the reference.
        middle: what each segment of the middle added.
        tail: the compared Bn blocks, by block id.
        cached, run: cached steps so far; those in a row.
    """

    options: DBCacheOptions
    step: int = 0
    reference: torch.Tensor | None = None
    reference_sum: torch.Tensor | None = None
    taken: int = -1
    middle: dict[int, Residual] = field(default_factory=dict)
    tail: dict[int, ComparedBlock] = field(default_factory=dict)
    cached: int = 0
    run: int = 0

    def forget(self) -> None:
        self.reference = self.reference_sum = None
        self.middle.clear()
        self.tail.clear()

    def undo(self, step: int) -> None:
        if self.taken == step:
            self.reference = self.reference_sum = None
        for residual in self.middle.values():
            residual.undo(step)
        for block in self.tail.values():
            block.undo(step)

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (t for t in (self.reference, self.reference_sum) if t is not None)
        for residual in self.middle.values():
            yield from residual.tensors()
        for block in self.tail.values():
            yield from block.tensors()


class DualBlock:
    """Runs the blocks of calls whose images have the same Fn, Bn and Bn ids; all else is each image's own."""

    def __init__(self, options: DBCacheOptions, deciding: Deciding) -> None:
        self._deciding = deciding
        count = len(deciding.blocks)
        self._last_first = options.Fn_compute_blocks - 1
        self._tail_start = count - options.Bn_compute_blocks
        self._segments = _segments(deciding.blocks, options.Fn_compute_blocks, self._tail_start)
        kept = options.Bn_compute_blocks_ids or range(options.Bn_compute_blocks)
        self._always = {self._tail_start + i for i in kept}

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[_Image]:
        return [_Image(own) for own in for_rows(each, rows, latents)]

    def begin_step(self, images: Sequence[_Image], decisions: Sequence[ImageDecision]) -> None:
        self._images, self._decisions = images, decisions
        self._entry: States | None = None
        self._base: States | None = None
        self._computing = list(range(len(images)))
        self._keeping = [_may_be_reused(image, image.step) for image in images]

    def run(self, call: BlockCall) -> Any:
        index = call.block.index
        if index <= self._last_first:
            return self._first(call)
        if index < self._tail_start:
            return self._middle(call)
        if index in self._always:
            return call.pack(self._complete(call, {}))
        return self._compared(call)

    def end_step(self) -> None:
        for image, decision in zip(self._images, self._decisions, strict=True):
            if decision.cached:
                image.cached += 1
                image.run += 1
            else:
                image.run = 0
            if not _may_be_reused(image, image.step + 1):
                image.forget()
        self._entry = self._base = None

    # --- the three kinds of blocks -----------------------------------------------------------------------------

    def _first(self, call: BlockCall) -> Any:
        if call.block.index == 0 or call.block.seam:
            self._entry = call.states
        states = self._complete(call, {})
        if call.block.index == self._last_first:
            self._decide(states)
        return call.pack(states)

    def _middle(self, call: BlockCall) -> Any:
        index = call.block.index
        first, last = next(segment for segment in self._segments if segment[0] <= index <= segment[1])
        if index == first:
            # What a cached image passes through with is the model's, which may write into it.
            passing = self._cached_images() and index != last
            self._base = call.states.copied() if passing else call.states
        # Cached images pass unchanged through the middle and get what it would have added at its last block: the model
        # may add residuals of its own (ControlNet) between the blocks, and those must not count twice.
        if index != last:
            if not self._computing:
                return call.pack(call.states)
            return call.pack(self._complete(call, {k: call.states.row(k) for k in self._cached_images()}))
        base, images = self._base, self._images
        assert base is not None  # the segment's first block came before
        reused = {
            k: States(*images[k].middle[last].add_to(images[k].step, *base.row(k))) for k in self._cached_images()
        }
        states = self._complete(call, reused)
        for k in self._computing:
            if self._keeping[k]:
                residual = images[k].middle.setdefault(last, Residual(images[k].options.taylor_order))
                residual.record(images[k].step, *states.row(k).minus(base.row(k)))
        self._base = None
        return call.pack(states)

    def _compared(self, call: BlockCall) -> Any:
        """A Bn block outside ``Bn_compute_blocks_ids``: in a cached step judged on its own input."""
        index = call.block.index
        sums: list[Sums | None] = [None] * call.batch
        answered = self._deciding.answered(index)
        for k in self._cached_images():
            if answered[k] is None and (known := self._images[k].tail.get(index)):
                sums[k] = known.compare(call.states.row(k))
        reused: dict[int, States] = {}
        if any(own is not None for own in (*sums, *answered)):
            verdicts = self._deciding.agree(index, sums, call.states.hidden.device)
            for k, verdict in enumerate(verdicts):
                if verdict is None:
                    continue
                threshold = self._images[k].options.tail_threshold
                self._decisions[k].differences[index] = (verdict.difference, threshold)
                if verdict.below(threshold):
                    reused[k] = self._images[k].tail[index].reuse(self._images[k].step, call.states.row(k))
                elif not verdict.finite:
                    self._images[k].tail.pop(index, None)
            self._deciding.decided(*(k in reused for k in range(call.batch)))
        states = self._complete(call, reused)
        for k in self._computing:
            if self._keeping[k]:
                image = self._images[k]
                block = image.tail.get(index)
                if block is None:
                    block = image.tail[index] = ComparedBlock(call.block, image.options.taylor_order)
                block.record(image.step, call.states.owned_row(k), states.row(k))
        return call.pack(states)

    # --- deciding ----------------------------------------------------------------------------------------------

    def _decide(self, states: States) -> None:
        """One look at every image, in every step: the fixed place of DBCache's one all-reduce."""
        entry = self._entry
        assert entry is not None  # block 0 came before
        sums: list[Sums | None] = []
        answered = self._deciding.answered(self._last_first)
        for k, (image, decision) in enumerate(zip(self._images, self._decisions, strict=True)):
            if answered[k] is not None:
                sums.append(None)
                continue
            if (gate := _gate(image)) is not None or (reference := image.reference) is None:
                decision.reason = gate or "first"
                sums.append(None)
                continue
            if image.reference_sum is None:
                image.reference_sum = absolute_sum(reference)
            moved = difference_sum(states.hidden[k], reference, minus=entry.hidden[k])
            sums.append((moved, image.reference_sum))
        verdicts = self._deciding.agree(self._last_first, sums, states.hidden.device)
        for k, (verdict, decision) in enumerate(zip(verdicts, self._decisions, strict=True)):
            if verdict is None:
                continue
            threshold = self._images[k].options.residual_diff_threshold
            decision.residual_diff = verdict.difference
            decision.differences[self._last_first] = (verdict.difference, threshold)
            decision.cached = verdict.below(threshold)
            decision.reason = "below" if decision.cached else "threshold" if verdict.finite else "non_finite"
            if not verdict.finite:
                self._images[k].forget()
                self._keeping[k] = False
        self._deciding.decided(*(decision.cached for decision in self._decisions))
        self._computing = [k for k, decision in enumerate(self._decisions) if not decision.cached]
        for k in self._computing:
            # Only the last warm-up step's reference can be compared; residuals are kept earlier, for the forecast.
            image = self._images[k]
            if self._keeping[k] and image.step >= image.options.warmup_steps - 1:
                image.reference = (states.hidden[k] - entry.hidden[k]).detach()
                image.reference_sum, image.taken = None, image.step
        self._entry = None

    # --- running blocks ----------------------------------------------------------------------------------------

    def _cached_images(self) -> list[int]:
        return [k for k, decision in enumerate(self._decisions) if decision.cached]

    def _complete(self, call: BlockCall, known: dict[int, States]) -> States:
        for k, decision in enumerate(self._decisions):
            decision.computed_blocks += k not in known
        return call.complete(known)


def _gate(image: _Image) -> Reason | None:
    """Why this image is computed though there were something to compare with; None if it asks."""
    options = image.options
    if image.step < options.warmup_steps:
        return "warmup"
    if _reached(options.max_cached_steps, image.cached) or _reached(options.max_continuous_cached_steps, image.run):
        return "limit"
    return "threshold" if options.residual_diff_threshold <= 0 else None


def _may_be_reused(image: _Image, step: int) -> bool:
    """Whether a residual computed at ``step`` can be read later; counters only, so the same on all ranks."""
    options = image.options
    return (
        step >= options.warmup_steps - 1 - options.taylor_order
        and options.residual_diff_threshold > 0
        and not _reached(options.max_cached_steps, image.cached)
        and options.max_continuous_cached_steps != 0
    )


def _reached(limit: int, count: int) -> bool:
    return 0 <= limit <= count


def _segments(blocks: Sequence[Block], start: int, end: int) -> list[tuple[int, int]]:
    """The middle ``start..end-1`` cut at the model's seams (FLUX.2 joins text and image between its stacks).

    Within a segment one residual spans all blocks, also across stacks.
    """
    bounds = [start, *(block.index for block in blocks[start + 1 : end] if block.seam), end]
    return [(a, b - 1) for a, b in itertools.pairwise(bounds) if b > a]
