"""The state of one image in DBCache and similar methods, and when counters alone allow reuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from cache_core.policies.compared_block import ComparedBlock
from cache_core.policies.residual import Residual
from cache_core.report import Reason

__all__ = ["DualImage", "DualOptions"]


class DualOptions(Protocol):
    """Fields of a method that reuses the middle between Fn and Bn blocks."""

    @property
    def Fn_compute_blocks(self) -> int: ...
    @property
    def Bn_compute_blocks(self) -> int: ...
    @property
    def Bn_compute_blocks_ids(self) -> tuple[int, ...]: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def max_cached_steps(self) -> int: ...
    @property
    def max_continuous_cached_steps(self) -> int: ...
    @property
    def residual_diff_threshold(self) -> float: ...
    @property
    def tail_threshold(self) -> float: ...
    @property
    def taylor_order(self) -> int: ...


@dataclass
class DualImage:
    """What is remembered of one image between steps.

    Attributes:
        options: the image's own; those that determine which blocks run are the same for all images of a call.
        step: number of calls of this branch before the running one.
        reference: residual of the Fn blocks at the last computed step, [tokens, channels].
        reference_sum: its absolute sum, computed at the first comparison.
        taken: the step of the reference.
        middle: what each segment of the middle added.
        tail: the compared Bn blocks, by block id.
        cached, run: number of cached steps so far, and in a row.
    """

    options: DualOptions
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

    def gate(self) -> Reason | None:
        """Why this image is computed although there is something to compare with; None if it is compared."""
        options = self.options
        if self.step < options.warmup_steps:
            return "warmup"
        if _reached(options.max_cached_steps, self.cached) or _reached(options.max_continuous_cached_steps, self.run):
            return "limit"
        return "threshold" if options.residual_diff_threshold <= 0 else None

    def threshold(self, difference: float | None) -> float:
        """The value below which a difference allows reuse in this step."""
        return self.options.residual_diff_threshold

    def may_be_reused(self, step: int) -> bool:
        """Whether a residual computed at ``step`` can be read later; uses only counters, so all ranks agree."""
        options = self.options
        return (
            step >= options.warmup_steps - 1 - options.taylor_order
            and options.residual_diff_threshold > 0
            and not _reached(options.max_cached_steps, self.cached)
            and options.max_continuous_cached_steps != 0
        )


def _reached(limit: int, count: int) -> bool:
    return 0 <= limit <= count
