"""ForecastCache: the middle is forecast if the forecast is right for the Fn blocks, with weights fitted on them.

DBCache tests whether the Fn blocks' residual has changed since the last computed step. For a middle that is forecast
instead of repeated, that is the wrong test: even change is forecast well. Here the Fn blocks' residual is forecast too,
with the same weights as the middle's, and compared with its actual value. The weights themselves are fitted to that
value, for each image at each step (:mod:`cache_core.policies.weight_fit`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cache_core.blocks import States
from cache_core.consensus import Sums
from cache_core.policies.dual_block import DualBlock
from cache_core.policies.dual_image import DualImage
from cache_core.policies.nodes import Nodes
from cache_core.policies.weight_fit import WIDTH, fitted
from cache_core.policy import Judge, Verdict
from cache_core.report import ImageDecision

__all__ = ["ForecastBlock", "ForecastImage"]


@dataclass
class ForecastImage(DualImage):
    """What is remembered of one image: the Fn blocks' residuals of several computed steps instead of one."""

    nodes: Nodes = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = Nodes(self.options.taylor_order + 1)

    def forget(self) -> None:
        super().forget()
        self.nodes.clear()

    def undo(self, step: int) -> None:
        super().undo(step)
        self.nodes.undo(step)

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from super().tensors()
        yield from self.nodes.tensors()


class ForecastBlock(DualBlock):
    """Runs a call as DBCache does, with a different comparison."""

    _memory: type[DualImage] = ForecastImage
    _images: Sequence[ForecastImage]

    def begin_step(self, images: Sequence[Any], decisions: Sequence[ImageDecision]) -> None:
        super().begin_step(images, decisions)
        self._weights: dict[int, tuple[float, ...]] = {}  # of images that reuse

    def _asked(self, k: int, states: States) -> Sums | None:
        image = self._images[k]
        if (gate := image.gate()) is not None or not image.nodes:
            self._decisions[k].reason = gate or "first"
            return None
        return image.nodes.products(states.hidden[k], self._before(k))

    def _agreed(self, sums: Sequence[Sums | None], device: torch.device) -> list[Verdict | None]:
        judges: list[Judge] = [
            functools.partial(fitted, image.nodes.weights(image.step) if image.nodes else ()) for image in self._images
        ]
        return self._deciding.agree(self._last_first, sums, device, WIDTH, judges)

    def _judge(self, k: int, verdict: Verdict) -> None:
        super()._judge(k, verdict)
        self._decisions[k].weights = list(verdict.weights)
        if self._decisions[k].cached:
            self._weights[k] = verdict.weights

    def _outcome(self, k: int) -> object:
        return self._decisions[k].cached, self._decisions[k].weights

    def _remember(self, k: int, states: States) -> None:
        # From the same step on as the middle's residuals, to which the weights are applied.
        self._images[k].nodes.record(self._images[k].step, states.hidden[k] - self._before(k))

    def _weights_of(self, k: int) -> Sequence[float] | None:
        return self._weights[k]
