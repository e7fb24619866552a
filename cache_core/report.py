"""The record of the cache's decisions at each step, with reasons: for users, metrics and tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["CacheReport", "ImageDecision", "Reason", "StepRecord"]

Reason = Literal["warmup", "first", "limit", "threshold", "non_finite", "below", "schedule", "budget"]


@dataclass(slots=True)
class ImageDecision:
    """One image in one step.

    Attributes:
        cached: the middle blocks were reused (all methods but DBPrune).
        reason: why it was computed (``warmup first limit threshold non_finite``) or reused (``below``); ``schedule``
            if the computed steps are fixed beforehand; ``budget`` if the remaining budget leaves no choice.
        residual_diff: relative L1 difference behind the decision (ForecastCache: relative L2 error of the forecast);
            None if nothing was compared, or the value is not finite.
        pruned_blocks: ids of the pruned blocks (DBPrune).
        computed_blocks: how many blocks ran for this image.
        differences: ``{block id: (difference or None, threshold)}`` for every comparison made.
        weights: weights of the forecast that was compared or used, oldest computed step first (ForecastCache,
            ScheduleCache).
    """

    cached: bool = False
    reason: Reason = "first"
    residual_diff: float | None = None
    pruned_blocks: list[int] = field(default_factory=list)
    computed_blocks: int = 0
    differences: dict[int, tuple[float | None, float]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)

    def to_dict(self, detail: bool = False) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "cached": self.cached,
            "reason": self.reason,
            "residual_diff": self.residual_diff,
            "pruned_blocks": list(self.pruned_blocks),
        }
        if self.weights:
            entry["weights"] = list(self.weights)
        if detail:
            entry["differences"] = {block: list(pair) for block, pair in self.differences.items()}
        return entry


@dataclass(slots=True)
class StepRecord:
    """One call of the transformer: step ``step`` (from 0, within its branch) for every image of the batch."""

    step: int
    branch: str
    images: list[ImageDecision]


@dataclass(slots=True)
class CacheReport:
    """All decisions of one session. Grows by one :class:`StepRecord` at the end of every step.

    Attributes:
        method: the ``type`` of the options.
        options: the options in effect, as JSON values.
        num_blocks: transformer blocks of the model.
        steps: the steps so far, all branches in call order.
        collectives: all-reduces made; 0 without a group.
        collective_wait_s: seconds this rank spent in them, waiting for slower ranks (and for its own GPU's work).
        non_finite: comparisons whose sums were NaN or infinite.
    """

    method: str
    options: dict[str, Any]
    num_blocks: int
    steps: list[StepRecord] = field(default_factory=list)
    collectives: int = 0
    collective_wait_s: float = 0.0
    non_finite: int = 0

    def _per_image(self) -> list[list[ImageDecision]]:
        images = max((len(step.images) for step in self.steps), default=0)
        return [[step.images[k] for step in self.steps if k < len(step.images)] for k in range(images)]

    @property
    def cached_steps(self) -> list[int]:
        """Cached steps of each image, over all branches."""
        return [sum(decision.cached for decision in image) for image in self._per_image()]

    @property
    def computed_block_fraction(self) -> list[float]:
        """Share of blocks that ran, for each image; 1.0 when nothing was saved."""
        return [
            sum(decision.computed_blocks for decision in image) / (self.num_blocks * len(image))
            for image in self._per_image()
        ]

    def to_dict(self, detail: bool = False) -> dict[str, Any]:
        """The report as JSON values; with ``detail``, every comparison is listed under ``differences``."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "steps": [
                {
                    "step": record.step,
                    "branch": record.branch,
                    "images": [decision.to_dict(detail) for decision in record.images],
                }
                for record in self.steps
            ],
            "totals": {
                "steps": len(self.steps),
                "cached_steps": self.cached_steps,
                "computed_block_fraction": [round(share, 6) for share in self.computed_block_fraction],
                "collectives": self.collectives,
                "non_finite": self.non_finite,
            },
        }
