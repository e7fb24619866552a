"""DBCache: the first Fn blocks decide, the middle is reused, the last Bn blocks correct. FBCache is F1B0 of it.

Behaviour as published with cache-dit v0.1.5, per image instead of per batch: the residual of the Fn blocks is compared
with that of the last computed step; strictly below the threshold, the middle blocks are replaced by what they added
when they last ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from cache_core.blocks import Block, BlockCall, States
from cache_core.consensus import Sums
from cache_core.difference import absolute_sum, difference_sum
from cache_core.policies.compared_block import ComparedBlock
from cache_core.policies.dual_image import DualImage, DualOptions
from cache_core.policies.residual import Residual
from cache_core.policies.rows import for_rows
from cache_core.policy import Deciding, Verdict
from cache_core.report import ImageDecision

__all__ = ["DualBlock"]


class DualBlock:
    """Runs the blocks of calls whose images have the same Fn, Bn and Bn ids; everything else is per image."""

    #: The class of an image's memory.
    _memory: type[DualImage] = DualImage

    def __init__(self, options: DualOptions, deciding: Deciding) -> None:
        self._deciding = deciding
        count = len(deciding.blocks)
        self._last_first = options.Fn_compute_blocks - 1
        self._tail_start = count - options.Bn_compute_blocks
        self._segments = _segments(deciding.blocks, options.Fn_compute_blocks, self._tail_start)
        kept = options.Bn_compute_blocks_ids or range(options.Bn_compute_blocks)
        self._always = {self._tail_start + i for i in kept}

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[Any]:
        return [self._memory(own) for own in for_rows(each, rows, latents)]

    def begin_step(self, images: Sequence[DualImage], decisions: Sequence[ImageDecision]) -> None:
        self._images, self._decisions = images, decisions
        self._entry: States | None = None
        self._base: States | None = None
        self._computing = list(range(len(images)))
        self._keeping = [image.may_be_reused(image.step) for image in images]

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
            if not image.may_be_reused(image.step + 1):
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
            # The states of a cached image that pass through belong to the model, which may write into them.
            passing = self._cached_images() and index != last
            self._base = call.states.copied() if passing else call.states
        # Cached images pass unchanged through the middle, and what it would have added is added at its last block: the
        # model may add residuals of its own (ControlNet) between the blocks, and those must not count twice.
        if index != last:
            if not self._computing:
                return call.pack(call.states)
            return call.pack(self._complete(call, {k: call.states.row(k) for k in self._cached_images()}))
        base, images = self._base, self._images
        assert base is not None  # set at the segment's first block
        reused = {
            k: States(*images[k].middle[last].add_to(images[k].step, *base.row(k), self._weights_of(k)))
            for k in self._cached_images()
        }
        states = self._complete(call, reused)
        for k in self._computing:
            if self._keeping[k]:
                residual = images[k].middle.setdefault(last, Residual(images[k].options.taylor_order))
                residual.record(images[k].step, *states.row(k).minus(base.row(k)))
        self._base = None
        return call.pack(states)

    def _compared(self, call: BlockCall) -> Any:
        """A Bn block outside ``Bn_compute_blocks_ids``: in a cached step decided by its own input."""
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
        """Decide for every image, at the same block in every step: the place of DBCache's one all-reduce."""
        answered = self._deciding.answered(self._last_first)
        sums = [None if answered[k] is not None else self._asked(k, states) for k in range(len(self._images))]
        for k, verdict in enumerate(self._agreed(sums, states.hidden.device)):
            if verdict is not None:
                self._judge(k, verdict)
        self._deciding.decided(*map(self._outcome, range(len(self._images))))
        self._computing = [k for k, decision in enumerate(self._decisions) if not decision.cached]
        for k in self._computing:
            if self._keeping[k]:
                self._remember(k, states)
        self._entry = None

    def _asked(self, k: int, states: States) -> Sums | None:
        """The sums of image ``k``; None, with the reason recorded, if it is computed without a comparison."""
        image, decision = self._images[k], self._decisions[k]
        if (gate := image.gate()) is not None or (reference := image.reference) is None:
            decision.reason = gate or "first"
            return None
        if image.reference_sum is None:
            image.reference_sum = absolute_sum(reference)
        return difference_sum(states.hidden[k], reference, minus=self._before(k)), image.reference_sum

    def _agreed(self, sums: Sequence[Sums | None], device: torch.device) -> list[Verdict | None]:
        return self._deciding.agree(self._last_first, sums, device)

    def _judge(self, k: int, verdict: Verdict) -> None:
        image, decision = self._images[k], self._decisions[k]
        threshold = image.threshold(verdict.difference)
        decision.residual_diff = verdict.difference
        decision.differences[self._last_first] = (verdict.difference, threshold)
        decision.cached = verdict.below(threshold)
        decision.reason = "below" if decision.cached else "threshold" if verdict.finite else "non_finite"
        if not verdict.finite:
            image.forget()
            self._keeping[k] = False

    def _outcome(self, k: int) -> object:
        """What enters the ranks' checksums of image ``k``'s decision."""
        return self._decisions[k].cached

    def _remember(self, k: int, states: States) -> None:
        """Keep the Fn blocks' residual of a computed step, to compare later ones with."""
        # Only the last warm-up step's reference can be compared; for the forecast, earlier residuals are kept too.
        image = self._images[k]
        if image.step >= image.options.warmup_steps - 1:
            image.reference = (states.hidden[k] - self._before(k)).detach()
            image.reference_sum, image.taken = None, image.step

    def _before(self, k: int) -> torch.Tensor:
        """The image tokens that entered the first block."""
        assert self._entry is not None  # set at block 0
        return self._entry.hidden[k]

    def _weights_of(self, k: int) -> Sequence[float] | None:
        """Weights of the forecast that is reused for image ``k``; None = those of a polynomial."""
        return None

    # --- running blocks ----------------------------------------------------------------------------------------

    def _cached_images(self) -> list[int]:
        return [k for k, decision in enumerate(self._decisions) if decision.cached]

    def _complete(self, call: BlockCall, known: dict[int, States]) -> States:
        for k, decision in enumerate(self._decisions):
            decision.computed_blocks += k not in known
        return call.complete(known)


def _segments(blocks: Sequence[Block], start: int, end: int) -> list[tuple[int, int]]:
    """The middle ``start..end-1`` split at the model's seams (FLUX.2 joins text and image between its stacks).

    Within a segment one residual spans all blocks, also across stacks.
    """
    bounds = [start, *(block.index for block in blocks[start + 1 : end] if block.seam), end]
    return [(a, b - 1) for a, b in itertools.pairwise(bounds) if b > a]
