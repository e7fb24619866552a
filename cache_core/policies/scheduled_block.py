"""ScheduleCache: the computed steps are fixed beforehand, whatever the image looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cache_core.blocks import States
from cache_core.consensus import Sums
from cache_core.forecast_options import ScheduleCacheOptions
from cache_core.policies.forecast_block import ForecastBlock, ForecastImage
from cache_core.policy import Verdict
from cache_core.report import Reason

__all__ = ["ScheduledBlock"]


@dataclass
class _Image(ForecastImage):
    options: ScheduleCacheOptions

    def gate(self) -> Reason | None:
        if self.step < self.options.warmup_steps:
            return "warmup"
        return "schedule" if self.options.computes(self.step) else None

    def may_be_reused(self, step: int) -> bool:
        return step >= self.options.warmup_steps - 1 - self.options.taylor_order and self.options.reuses_from(step)


class ScheduledBlock(ForecastBlock):
    """The Fn blocks give the weights at most, never the decision."""

    _memory = _Image
    _images: Sequence[_Image]

    def _asked(self, k: int, states: States) -> Sums | None:
        image, decision = self._images[k], self._decisions[k]
        if image.options.fit_weights or image.gate() is not None or not image.nodes:
            return super()._asked(k, states)
        decision.cached, decision.reason = True, "schedule"
        decision.weights = image.nodes.weights(image.step)
        self._weights[k] = tuple(decision.weights)
        return None

    def _judge(self, k: int, verdict: Verdict) -> None:
        super()._judge(k, verdict)
        decision = self._decisions[k]
        decision.differences.clear()  # nothing was compared with a threshold
        if verdict.finite:
            decision.cached, decision.reason = True, "schedule"
            self._weights[k] = verdict.weights
