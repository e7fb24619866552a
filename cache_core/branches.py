"""One branch of a job: its counters, the state of its images, and the current step.

A failed call may be repeated, together with other jobs, and must then decide and compute as if it had not failed. A
method's memory is replaced while the call runs, and keeping the old values until the call is over would hold every
residual twice (DBPrune has one for each block). Verdicts are kept instead, which are only numbers: they are reused when
the call is repeated. A method replaces what it remembers only where a verdict, or counters alone, had decided that the
image is computed here, so the repeated call does not need the old values; and it stores the new ones again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cache_core.calls import CallInputs, FailedCall
from cache_core.consensus import Totals
from cache_core.policy import ImageMemory, Judge, Policy, Verdict
from cache_core.report import ImageDecision, StepRecord

__all__ = ["Branch", "Shapes"]

#: Shapes of both streams; None for the encoder's where blocks do not return it.
Shapes = tuple[tuple[int, ...], tuple[int, ...] | None]


class Branch:
    """State of one named cache context.

    Attributes:
        step: number of completed calls.
        next_block: number of blocks that the running call has called.
        polled: whether the running call has polled the abort flag.
        decisions: of the running call, row by row.
        policy: runs the calls that this job makes alone.
    """

    policy: Policy

    def __init__(self, name: str) -> None:
        self.name = name
        self.step = self.next_block = 0
        self.polled = False
        self.images: list[ImageMemory] = []
        self.decisions: list[ImageDecision] = []
        self._shape: Shapes | None = None
        self._inputs: CallInputs | None = None
        self._failed: FailedCall | None = None
        self._verdicts: dict[int, list[Verdict | None]] = {}

    def begin(self, inputs: CallInputs) -> None:
        """A call begins. If it does not repeat the one that failed, the memory is useless and is cleared."""
        if self._failed is not None and not self._failed.is_again(inputs):
            self.forget()
        self._inputs = inputs

    def open(self, shape: Shapes, each: Sequence[Any], new_policy: Callable[[], Policy], fixed: bool) -> None:
        """The first block of the call is called on rows of ``shape``.

        Args:
            each: the options of every image, or one for all.
            fixed: whether the shape must be the same at every step.

        Raises:
            ValueError: the batch or size differs from the branch's first step.
        """
        rows = shape[0][0]
        if self._shape is None:
            self.policy = new_policy()
            self.images = self.policy.new_images(each, rows, self._inputs.latents if self._inputs else None)
        elif fixed and shape != self._shape:
            raise ValueError(self._refusal(self._shape, shape))
        self._shape = shape
        self.polled = False
        self.decisions = [ImageDecision() for _ in range(rows)]
        for image in self.images:
            image.step = self.step

    def answered(self, site: int) -> list[Verdict | None]:
        """For each row its verdict at block ``site`` from a failed attempt at this call."""
        return self._verdicts.get(site) or [None] * len(self.decisions)

    def settle(self, site: int, totals: Sequence[Totals | None], judges: Sequence[Judge] = ()) -> list[Verdict | None]:
        """The verdicts at block ``site``: those of a failed attempt stand, the others follow from the ranks' sums."""
        judges = judges or [Verdict.of] * len(totals)
        self._verdicts[site] = [
            before or (None if own is None else judge(*own))
            for before, own, judge in zip(self.answered(site), totals, judges, strict=True)
        ]
        return self._verdicts[site]

    def commit(self) -> tuple[StepRecord, int]:
        """The call is over: return its step, and how many of its comparisons were not finite."""
        decisions = self.decisions if self.next_block else []  # no block was called
        record = StepRecord(self.step, self.name, decisions)
        verdicts = [verdict for row in self._verdicts.values() for verdict in row if verdict is not None]
        self._verdicts = {}
        self._inputs = self._failed = None
        self.step += 1
        self.next_block = 0
        return record, sum(not verdict.finite for verdict in verdicts)

    def undo(self) -> None:
        """The call failed: keep only its verdicts, in case it is repeated."""
        if self.next_block and self._inputs is not None:
            self._failed = FailedCall(self._inputs)
        for image in self.images:
            image.undo(self.step)
        self._inputs = None
        self.decisions = []
        self.next_block = 0

    def forget(self) -> None:
        """Drop everything that is remembered of earlier steps, but keep the counters."""
        self._failed, self._verdicts = None, {}
        for image in self.images:
            image.forget()

    def _refusal(self, first: Shapes, now: Shapes) -> str:
        if first[0][0] != now[0][0]:
            return (
                f"batch size changed inside branch {self.name!r}: {first[0][0]} at its first step, {now[0][0]} at step "
                f"{self.step}; open a new cache_session for a different batch"
            )
        return (
            f"input shape changed inside branch {self.name!r}: {first} at its first step, {now} at step {self.step}; "
            "open a new cache_session for a different size"
        )
