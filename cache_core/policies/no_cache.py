"""No caching: every block runs. A policy like the others, so that abort and agreement work without a method too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cache_core.blocks import BlockCall
from cache_core.options import NoCacheOptions
from cache_core.report import ImageDecision
from cache_core.session import Session

__all__ = ["ComputeAll"]


class ComputeAll:
    """The policy of one branch."""

    def __init__(self, each: Sequence[NoCacheOptions], session: Session) -> None:
        self._session = session
        self._images: list[ImageDecision] = []

    def begin_step(self, step: int, images: list[ImageDecision]) -> None:
        self._images, self._looked = images, False
        for decision in images:
            decision.reason = "threshold"

    def run(self, call: BlockCall) -> Any:
        if not self._looked:  # at the first block that is called: guidance may leave out block 0
            self._looked = True
            self._session.look(call.states.hidden.device)
        for decision in self._images:
            decision.computed_blocks += 1
        return call.pack(call.compute())

    def end_step(self) -> None:
        """Nothing to count."""

    def forget(self) -> None:
        """Nothing is remembered."""

    def tensors(self) -> Iterator[torch.Tensor]:
        return iter(())
