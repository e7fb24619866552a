"""BudgetCache: a given number of steps is computed, those where the forecast is worst.

ForecastCache's threshold fits one model and does not determine how long an image takes. Here the number of steps to
compute is known, so each step is computed if its forecast is worse than the budget has to accept.

With ``R`` steps left, including this one, and ``b`` of them to compute, one of every ``R / b`` is computed: a step is
reused up to the distance ``R / b - 1`` from the last computed one, and computed at ``R / b``. The threshold is between
the two, for an image that continues at the mean rate seen so far::

    rate = error / sqrt(distance)
    threshold = mean rate * sqrt(R / b - 1/2)

Where the image changes faster than before, errors cross the threshold early, and computing these steps increases
``R / b`` for the rest; where it changes more slowly, steps are saved. Nothing seen so far tells how fast the image will
change later, and the last steps are often the fastest. So the choice is bound to an even pace: never more than half a
step ahead of it, never more than one and a half behind. Without these bounds the budget was spent four steps before
the end (28 steps of the bundled model, 39 % of the blocks). With ``b = R`` every step is computed, with ``b = 0`` none:
exactly the budget is spent. Everything is either counted or agreed on by the ranks, so they decide alike.

The error itself grows nearly in proportion to the distance. On the bundled model the square root was better than that:
the threshold then depends less on the remaining budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_core.forecast_options import BudgetCacheOptions
from cache_core.policies.forecast_block import ForecastBlock, ForecastImage
from cache_core.policies.rows import for_rows
from cache_core.policy import Deciding, Verdict
from cache_core.report import ImageDecision, Reason

__all__ = ["BudgetBlock", "BudgetImage"]

#: How many computed steps an image may be ahead of an even pace, and behind it before a step is computed.
_AHEAD = _BEHIND = 0.5


@dataclass
class BudgetImage(ForecastImage):
    """An image and its remaining budget.

    Attributes:
        budget: number of its steps to compute.
        rates: sum and number of the rates seen.
    """

    options: BudgetCacheOptions
    budget: int = 0
    rates: tuple[float, int] = (0.0, 0)

    @property
    def left(self) -> tuple[int, int]:
        """The steps from this one on, and how many of them are to be computed."""
        return self.options.num_steps - self.step, self.budget - (self.step - self.cached)

    def gate(self) -> Reason | None:
        if self.step < self.options.warmup_steps:
            return "warmup"
        steps, computed = self.left
        return "budget" if computed >= steps > 0 else None

    def may_be_reused(self, step: int) -> bool:
        return super().may_be_reused(step) and self.budget < self.options.num_steps

    def rate(self, error: float) -> float:
        """``error`` divided by the square root of the distance to the last computed step."""
        return error / math.sqrt(self.step - self.nodes.last)

    @property
    def due(self) -> bool | None:
        """True if this step must be computed, False if it must be reused, None if its error decides."""
        if self.left[1] < 1:
            return False
        options = self.options
        warmup = options.warmup_steps
        even = (self.step + 1 - warmup) * (self.budget - warmup) / (options.num_steps - warmup)
        ahead = self.step + 1 - self.cached - warmup - even  # if this step is computed
        return False if ahead > _AHEAD else True if ahead <= -_BEHIND else None

    def threshold(self, difference: float | None) -> float:
        """The error from which this step is computed, if the error decides."""
        if difference is None or self.due is not None:
            return 0.0
        steps, computed = self.left
        total, count = self.rates
        return (total + self.rate(difference)) / (count + 1) * math.sqrt(steps / computed - 0.5)


class BudgetBlock(ForecastBlock):
    """Runs a call as ForecastCache does, with a threshold derived from the remaining budget."""

    _memory = BudgetImage
    _images: Sequence[BudgetImage]

    def __init__(self, options: BudgetCacheOptions, deciding: Deciding) -> None:
        super().__init__(options, deciding)
        self._num_blocks = len(deciding.blocks)

    def new_images(self, each: Sequence[Any], rows: int, latents: Any) -> list[Any]:
        return [BudgetImage(own, budget=self._budget(own)) for own in for_rows(each, rows, latents)]

    def _budget(self, options: BudgetCacheOptions) -> int:
        if not options.num_steps:
            raise ValueError(
                "BudgetCache must know how many denoising steps an image has: set num_steps to how often the loop "
                "calls the transformer (a cached pipeline's call, and the service, set it themselves)"
            )
        return options.budget(options.num_steps, self._num_blocks)

    def begin_step(self, images: Sequence[Any], decisions: Sequence[ImageDecision]) -> None:
        super().begin_step(images, decisions)
        self._rates: dict[int, float] = {}  # seen in this call

    def _judge(self, k: int, verdict: Verdict) -> None:
        image, decision = self._images[k], self._decisions[k]
        if verdict.difference is not None:
            self._rates[k] = image.rate(verdict.difference)
        super()._judge(k, verdict)
        if image.due is not None and verdict.finite:
            decision.differences.clear()  # nothing was compared with a threshold
            decision.cached, decision.reason = not image.due, "budget"
            self._weights.pop(k, None)
            if decision.cached:
                self._weights[k] = verdict.weights

    def end_step(self) -> None:
        for k, rate in self._rates.items():
            total, count = self._images[k].rates
            self._images[k].rates = total + rate, count + 1
        super().end_step()
