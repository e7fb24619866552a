"""Shared by the options of several methods: value types, and reasons why nothing is saved."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field

__all__ = ["BlockId", "StepLimit", "TaylorOrder", "Threshold", "never_judged", "no_block_between", "no_step_allowed"]

#: A relative L1 difference. 0 never caches; values of 1 and more are compared like any other.
Threshold = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
#: A number of steps; -1 means without limit.
StepLimit = Annotated[int, Field(ge=-1)]
BlockId = Annotated[int, Field(ge=0)]
#: Order of the residual forecast (TaylorSeer): 0 repeats the last residual, 1 and 2 extrapolate it.
TaylorOrder = Annotated[int, Field(ge=0, le=2)]


class _Judging(Protocol):
    """Fields of a method that, after a warm-up, skips what has changed little."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def residual_diff_threshold(self) -> float: ...


def never_judged(options: _Judging, steps: int) -> list[str]:
    late = f"warmup_steps={options.warmup_steps} covers all {steps} steps" if options.warmup_steps >= steps else ""
    strict = "no difference is below residual_diff_threshold=0" if options.residual_diff_threshold == 0 else ""
    return [reason for reason in (late, strict) if reason]


def no_step_allowed(*limits: int) -> list[str]:
    return ["a limit of 0 allows no cached step"] if 0 in limits else []


def no_block_between(first: int, last: int, num_blocks: int) -> list[str]:
    return ["Fn_compute_blocks and Bn_compute_blocks cover every block"] if first + last >= num_blocks else []
