"""Options of this project's own methods: a forecast that is verified, one that keeps a budget, and a fixed schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from cache_core.method_options import MethodOptions, check_ends
from cache_core.option_kinds import StepLimit, Threshold, never_judged, no_block_between, no_step_allowed

__all__ = ["BudgetCacheOptions", "ForecastCacheOptions", "ScheduleCacheOptions"]


class _Forecasting(MethodOptions):
    """Common to methods that forecast the middle between Fn and Bn blocks; all Bn blocks always run."""

    structure = frozenset({"Fn_compute_blocks", "Bn_compute_blocks"})
    Bn_compute_blocks_ids: ClassVar[tuple[int, ...]] = ()
    tail_threshold: ClassVar[float] = 0.0

    if TYPE_CHECKING:  # each method declares its own bounds and defaults
        Fn_compute_blocks: int
        Bn_compute_blocks: int
        warmup_steps: int
        forecast_nodes: int

    @property
    def taylor_order(self) -> int:
        """Order of the polynomial through ``forecast_nodes`` nodes."""
        return self.forecast_nodes - 1

    @property
    def computed_steps(self) -> int:
        return self.warmup_steps

    def check(self, num_blocks: int) -> None:
        check_ends(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks)


class _Unlimited(_Forecasting):
    """No limit of steps and no threshold."""

    max_cached_steps: ClassVar[int] = -1
    max_continuous_cached_steps: ClassVar[int] = -1
    residual_diff_threshold: ClassVar[float] = math.inf


class ForecastCacheOptions(_Forecasting):
    """The middle blocks are forecast where the forecast holds for the first ones, with weights fitted on them.

    Args:
        Fn_compute_blocks: first blocks, computed in every step; on their residual the forecast is fitted and judged.
        Bn_compute_blocks: last blocks, computed in every step.
        warmup_steps: the first steps of a branch that are always computed.
        max_cached_steps: cached steps allowed per image and branch; -1 = no limit.
        max_continuous_cached_steps: cached steps allowed in a row; any computed step ends a row. -1 = no limit.
        residual_diff_threshold: relative error (L2) of the first blocks' forecast below which (strictly) the middle is
            forecast. Not the published methods' measure: a fifth to a quarter of their threshold computes as many
            blocks of the bundled model.
        forecast_nodes: how many of the last computed steps a forecast uses.
    """

    policy = "cache_core.policies.forecast_block:ForecastBlock"
    thresholds = frozenset({"residual_diff_threshold"})

    type: Literal["ForecastCache"] = "ForecastCache"
    Fn_compute_blocks: int = Field(default=1, ge=1)
    Bn_compute_blocks: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=4, ge=0)
    max_cached_steps: StepLimit = -1
    max_continuous_cached_steps: StepLimit = 4
    residual_diff_threshold: Threshold = 0.04
    forecast_nodes: Annotated[int, Field(ge=2, le=3)] = 3

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        return [
            *never_judged(self, steps),
            *no_step_allowed(self.max_cached_steps, self.max_continuous_cached_steps),
            *no_block_between(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks),
        ]


class BudgetCacheOptions(_Unlimited):
    """ForecastCache without a threshold: it computes as many steps as ``speedup`` allows, those that need it most.

    Args:
        speedup: how many times fewer blocks are computed than without a cache. Of ``num_steps`` steps, the largest
            number is computed whole with which no more than 1 / ``speedup`` of the image's blocks are computed. The
            warm-up counts, and is computed even if it takes more.
        num_steps: denoising steps of an image; 0 = set by the code that opens the session (a pipeline's call, a
            service).
        Fn_compute_blocks: first blocks, computed in every step; on their residual the forecast is fitted and judged.
        Bn_compute_blocks: last blocks, computed in every step.
        warmup_steps: the first steps of a branch that are always computed.
        forecast_nodes: how many of the last computed steps a forecast uses.
    """

    policy = "cache_core.policies.budget_block:BudgetBlock"
    thresholds = frozenset({"speedup"})

    type: Literal["BudgetCache"] = "BudgetCache"
    speedup: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 2.0
    num_steps: int = Field(default=0, ge=0)
    Fn_compute_blocks: int = Field(default=1, ge=1)
    Bn_compute_blocks: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=4, ge=0)
    forecast_nodes: Annotated[int, Field(ge=2, le=3)] = 3

    def for_steps(self, steps: int) -> Self:
        return self if self.num_steps else self.model_copy(update={"num_steps": steps})

    def budget(self, steps: int, num_blocks: int) -> int:
        """How many of ``steps`` steps are computed whole: at least the warm-up, and at least one."""
        always = self._always(num_blocks)
        # With C of T steps computed: C + (T - C) always = T / speedup. A rounding error must not cost a whole step.
        affordable = math.floor(steps * (1 / self.speedup - always) / (1 - always) + 1e-9) if always < 1 else steps
        return min(steps, max(affordable, self.warmup_steps, 1))

    def known_share(self, steps: int, num_blocks: int) -> float | None:
        always = self._always(num_blocks)
        computed = min(steps, self.budget(self.num_steps or steps, num_blocks))  # calls beyond num_steps are reused
        return always + (1 - always) * computed / steps

    def why_less_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        computed, share = self.budget(steps, num_blocks), self.known_share(steps, num_blocks)
        if computed == steps or share is None or share * self.speedup <= 1 + 1e-9:
            return []
        first = f"the first {computed} of {steps} steps (warmup_steps={self.warmup_steps})"
        always = f"{self.Fn_compute_blocks} + {self.Bn_compute_blocks} of {num_blocks} blocks in every step"
        return [f"speedup={self.speedup:g} is at most {1 / share:.2f} here: {first} and {always} are always computed"]

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        all_of_them = self.budget(self.num_steps or steps, num_blocks) >= steps
        covered = no_block_between(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks)
        nothing = f"speedup={self.speedup:g} and warmup_steps={self.warmup_steps} leave no step of {steps} to reuse"
        return covered or ([nothing] if all_of_them else [])

    def _always(self, num_blocks: int) -> float:
        return min(1.0, (self.Fn_compute_blocks + self.Bn_compute_blocks) / num_blocks)


class ScheduleCacheOptions(_Unlimited):
    """A fixed schedule of computed steps, with a forecast between them: the baseline for every rule that compares.

    Args:
        Fn_compute_blocks: first blocks, computed in every step.
        Bn_compute_blocks: last blocks, computed in every step.
        warmup_steps: the first steps of a branch that are always computed.
        compute_every: after the warm-up, the last step of every group of this many is computed.
        steps_computation_mask: instead of ``compute_every``, for each step from the first on whether it is computed (as
            in cache-dit); steps beyond its end are computed. Empty = use ``compute_every``.
        forecast_nodes: how many of the last computed steps a forecast uses; 1 repeats the last residual.
        fit_weights: fit the forecast's weights on the first blocks, as ForecastCache does; else interpolate.
    """

    policy = "cache_core.policies.scheduled_block:ScheduledBlock"

    type: Literal["ScheduleCache"] = "ScheduleCache"
    Fn_compute_blocks: int = Field(default=1, ge=1)
    Bn_compute_blocks: int = Field(default=0, ge=0)
    warmup_steps: int = Field(default=4, ge=0)
    compute_every: int = Field(default=2, ge=1)
    steps_computation_mask: tuple[bool, ...] = ()
    forecast_nodes: Annotated[int, Field(ge=1, le=3)] = 2
    fit_weights: bool = False

    def computes(self, step: int) -> bool:
        """Whether step ``step``, from 0, is computed."""
        if step < max(self.warmup_steps, 1):  # the first has nothing to reuse
            return True
        if mask := self.steps_computation_mask:
            return step >= len(mask) or mask[step]
        return (step - self.warmup_steps) % self.compute_every == self.compute_every - 1

    def reuses_from(self, step: int) -> bool:
        """Whether any step from ``step`` on is not computed."""
        if self.steps_computation_mask:
            return not all(self.steps_computation_mask[max(step, self.warmup_steps, 1) :])
        return self.compute_every > 1

    def known_share(self, steps: int, num_blocks: int) -> float | None:
        computed = sum(map(self.computes, range(steps))) / steps
        always = min(1.0, (self.Fn_compute_blocks + self.Bn_compute_blocks) / num_blocks)
        return always + (1 - always) * computed

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        nothing = "the schedule computes every step" if all(map(self.computes, range(steps))) else ""
        return [*filter(None, [nothing]), *no_block_between(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks)]
