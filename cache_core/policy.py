"""The contract of a cache method: one object per call, one memory per image of a branch.

A call of the transformer may hold images of several jobs, each at its own step. What a method remembers or counts is
therefore kept per image, and so are its options, except those that determine which blocks run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from cache_core.blocks import Block, BlockCall
from cache_core.consensus import Sums
from cache_core.report import ImageDecision

__all__ = ["Deciding", "ImageMemory", "Judge", "Policy", "Verdict"]


class Verdict(NamedTuple):
    """The result of one image's comparison.

    Attributes:
        difference: the relative difference over all ranks; None if it has no value.
        finite: False if a sum was NaN or infinite.
        weights: of the forecast that was compared, for its last nodes; empty for methods that fit none.
    """

    difference: float | None
    finite: bool
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, difference: float, reference: float) -> Verdict:
        """From ``sum |now - then|`` and ``sum |then|`` over all ranks."""
        if not (difference < math.inf and reference < math.inf):  # also catches NaN
            return cls(None, finite=False)
        return cls(difference / reference if reference > 0 else None, finite=True)

    def below(self, threshold: float) -> bool:
        """Whether there is a difference and it is strictly below the threshold."""
        return self.difference is not None and self.difference < threshold


#: Computes an image's verdict from its sums over all ranks.
Judge = Callable[..., Verdict]


class Deciding(Protocol):
    """What a policy calls so that the ranks decide together.

    Attributes:
        blocks: the transformer's blocks in execution order.
    """

    blocks: list[Block]

    def agree(
        self,
        site: int,
        sums: Sequence[Sums | None],
        device: torch.device,
        width: int = 2,
        judges: Sequence[Judge] = (),
    ) -> list[Verdict | None]:
        """The verdicts, the same on all ranks, of images compared at block ``site``; None for the other images.

        Args:
            width: sums per image, whether it is compared or not.
            judges: one for each image; empty = :meth:`Verdict.of` for all.
        """

    def answered(self, site: int) -> list[Verdict | None]:
        """The images' verdicts at block ``site`` from a failed attempt at this call; :meth:`agree` returns them again.

        What was compared may be gone, so such an image has no sums; but :meth:`agree` must be called as in that
        attempt, on every rank.
        """

    def look(self, device: torch.device) -> None:
        """Poll the abort flag in a step in which no image is compared."""

    def decided(self, *each: object) -> None:
        """Add these decisions, one per image, to the history that the next checksum covers."""


class ImageMemory(Protocol):
    """What is remembered and counted for one image of one branch.

    While a call runs, an image's tensors are replaced only after the verdict to compute it, and its counters not at
    all, because the call may fail at any point.

    Attributes:
        step: number of calls of this branch before the running one; set before each.
    """

    step: int

    def forget(self) -> None:
        """Drop what is remembered of earlier steps, but keep the counters."""

    def undo(self, step: int) -> None:
        """The call of ``step`` failed: drop what it stored. What that had replaced is gone, but is not needed if the
        call is repeated, since its verdicts are kept; if a different call follows, :meth:`forget` is called."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held between steps."""


class Policy(Protocol):
    """Decides what to compute, reuse and remember. Constructed from options and a :class:`Deciding`; keeps nothing of
    an image beyond a call."""

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[Any]:
        """Memories for the rows of a new branch.

        Args:
            each: the options of every image, or one for all.
            latents: the transformer's input; rows of one image hold the same.
        """

    def begin_step(self, images: Sequence[Any], decisions: Sequence[ImageDecision]) -> None:
        """A call with these images begins; their decisions are filled in while it runs."""

    def run(self, call: BlockCall) -> Any:
        """Handle one block call and return the block's output."""

    def end_step(self) -> None:
        """The call is over: update counters here, and do nothing that may fail."""
