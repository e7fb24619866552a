"""The contract of a cache method: one object per call, one memory per image of a branch.

A call of the transformer may hold images of several jobs, at different steps of theirs. Whatever a method remembers or
counts is therefore an image's own, and so are its options, but for what says which blocks run.
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
    """The answer to one image's question.

    Attributes:
        difference: the relative difference over all ranks; None if it has no value.
        finite: False if a sum was NaN or infinite.
        weights: those of the forecast that was judged, of its last nodes; empty where a method fits none.
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
        """Strictly below, and only if there is a value."""
        return self.difference is not None and self.difference < threshold


#: From one image's sums over all ranks to its answer.
Judge = Callable[..., Verdict]


class Deciding(Protocol):
    """What a policy asks while a call runs: the ranks decide together.

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
        """All ranks' answer to the images that ask at block ``site``; None for those that do not.

        Args:
            width: how many sums an image has, whether it asks or not.
            judges: one for each image; empty = :meth:`Verdict.of` for all.
        """

    def answered(self, site: int) -> list[Verdict | None]:
        """The verdicts that images got at block ``site`` in a try of this call that failed: :meth:`agree` returns them,
        whatever is asked. What would be compared may be gone, so such an image has no sums; but :meth:`agree` is called
        as it was in that try, on every rank."""

    def look(self, device: torch.device) -> None:
        """A look at the abort flag in a step where no image asks anything."""

    def decided(self, *each: object) -> None:
        """One image each: make these decisions part of the history that the next checksum covers."""


class ImageMemory(Protocol):
    """What is remembered and counted of one image of one branch.

    While a call runs, an image's tensors are replaced only after the verdict that computes it, and its counters not at
    all: the call may fail at any place.

    Attributes:
        step: how many calls of this branch came before the running one; set before each.
    """

    step: int

    def forget(self) -> None:
        """Let go of what is remembered of earlier steps, but not of the counters."""

    def undo(self, step: int) -> None:
        """The call of ``step`` failed: let go of what it stored. What that replaced is gone, and not missed if the call
        is made again, where the verdicts stand; :meth:`forget` follows if another is made."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held between steps."""


class Policy(Protocol):
    """What to compute, what to reuse, what to remember. Made of options and of a :class:`Deciding`; keeps nothing of an
    image beyond a call."""

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[Any]:
        """Memories for the rows of a branch that begins.

        Args:
            each: the options of every image, or one for all.
            latents: what the transformer was called with; rows of one image hold the same.
        """

    def begin_step(self, images: Sequence[Any], decisions: Sequence[ImageDecision]) -> None:
        """A call with these images begins; their decisions are filled in as it goes."""

    def run(self, call: BlockCall) -> Any:
        """Handle one block call and return the block's output."""

    def end_step(self) -> None:
        """The call is over: counters are counted here, and nothing is done that may fail."""
