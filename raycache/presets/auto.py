"""``{"type": "auto"}``: cache options by their goal, a PSNR or a speed-up, in place of a method and its threshold."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions
from cache_core.options import CacheOptions

__all__ = ["AnyCache", "AutoCache", "ForecastCurve", "GoalError", "concrete"]


class GoalError(ValueError):
    """A goal in dB that no measured setting of the model is known to reach."""

    field = "cache.target_psnr"

    def __str__(self) -> str:
        return f"{self.field}: {self.args[0]}"


class AutoCache(BaseModel):
    """A goal in place of a method: the PSNR to keep, or the speed-up to reach. Set one of the two.

    Attributes:
        target_psnr: mean PSNR in dB to the uncached image.
        speedup: how many times fewer blocks are computed than without a cache.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["auto"] = "auto"
    target_psnr: Annotated[float, Field(gt=0, le=60)] | None = Field(
        default=None, description="Mean PSNR in dB to the uncached image, on a model whose thresholds were measured."
    )
    speedup: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        default=None, description="How many times fewer blocks are computed than without a cache."
    )

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.target_psnr is None) == (self.speedup is None):
            raise ValueError('`auto` needs one goal: `{"target_psnr": 35}` in dB, or `{"speedup": 2}`')
        return self


#: Options of a cache method, or its goal.
AnyCache = Annotated[CacheOptions | AutoCache, Field(discriminator="type")]


_Finite = Annotated[float, Field(allow_inf_nan=False)]


class ForecastCurve(BaseModel):
    """What ForecastCache's thresholds give on one model, measured by ``raycache.tune``.

    Attributes:
        warmup_steps: of the measured settings.
        points: mean PSNR in dB to the uncached image, and the threshold; falling PSNR, rising thresholds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    warmup_steps: int = Field(ge=0)
    points: tuple[tuple[_Finite, _Finite], ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        pairs = list(zip(self.points, self.points[1:], strict=False))
        if not all(one[0] > two[0] and 0 < one[1] < two[1] for one, two in pairs):
            raise ValueError("points must have falling PSNR and rising thresholds above 0")
        return self

    def options(self, target_psnr: float) -> CacheOptions:
        """ForecastCache with the threshold at which the mean PSNR was ``target_psnr``.

        Between two measured thresholds the PSNR is taken as linear in their logarithm. Below the lowest measured PSNR,
        the boldest setting exceeds the target.

        Raises:
            GoalError: the target is above the best measured PSNR.
        """
        if target_psnr > (best := self.points[0][0]):
            raise GoalError(
                f"no measured setting of this model reaches {target_psnr:g} dB; the most careful one has {best:g} dB, "
                'and `{"type": "none"}` caches nothing'
            )
        threshold = self.points[-1][1]
        for (high, careful), (low, bold) in zip(self.points, self.points[1:], strict=False):
            if low <= target_psnr <= high:
                share = (high - target_psnr) / (high - low)
                threshold = math.exp((1 - share) * math.log(careful) + share * math.log(bold))
                break
        return ForecastCacheOptions(warmup_steps=self.warmup_steps, residual_diff_threshold=float(f"{threshold:.4g}"))


def concrete(cache: AnyCache, curve: ForecastCurve | None) -> CacheOptions:
    """The options of a goal; other options as they are.

    Raises:
        GoalError: a goal in dB that cannot be met, or of which that is not known.
    """
    if not isinstance(cache, AutoCache):
        return cache
    if cache.speedup is not None:
        return BudgetCacheOptions(speedup=cache.speedup)
    if curve is None or cache.target_psnr is None:
        raise GoalError(
            "what PSNR a threshold gives has not been measured for this model: `python -m raycache.tune` writes it into"
            ' a presets file to set as `model.presets`; without it, `{"type": "auto", "speedup": 2}` is possible'
        )
    return curve.options(cache.target_psnr)
