"""No caching: every block runs. A policy like the others, so that abort and agreement also work without a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_core.blocks import BlockCall
from cache_core.options import NoCacheOptions
from cache_core.policy import Deciding
from cache_core.report import ImageDecision

__all__ = ["ComputeAll"]


class ComputeAll:
    """Has no memory, so that batches may change from call to call."""

    def __init__(self, options: NoCacheOptions, deciding: Deciding) -> None:
        self._deciding = deciding

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[Any]:
        return []

    def begin_step(self, images: Sequence[Any], decisions: Sequence[ImageDecision]) -> None:
        self._decisions, self._looked = decisions, False
        for decision in decisions:
            decision.reason = "threshold"

    def run(self, call: BlockCall) -> Any:
        if not self._looked:  # at the first block called: guidance may leave out block 0
            self._looked = True
            self._deciding.look(call.states.hidden.device)
        for decision in self._decisions:
            decision.computed_blocks += 1
        return call.pack(call.compute())

    def end_step(self) -> None:
        """Nothing to count."""
