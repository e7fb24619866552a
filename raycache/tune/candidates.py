"""The settings that a sweep tries, in families with decreasing quality and increasing speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions
from cache_core.options import CacheOptions, DBCacheOptions, DBPruneOptions, FBCacheOptions, check_block_count

THRESHOLDS = (0.06, 0.08, 0.12, 0.2, 0.3, 0.45, 0.65, 1.0)

#: Thresholds for errors of a forecast, which are smaller than the changes themselves.
ERRORS = (0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15)

SPEEDUPS = (1.6, 1.9, 2.2, 2.6, 3.0, 3.5)

_Judging = FBCacheOptions | DBCacheOptions | DBPruneOptions | ForecastCacheOptions


@dataclass(frozen=True)
class Family:
    """Settings that differ only in their threshold.

    Attributes:
        name: for tables.
        options: from the most careful to the most aggressive.
    """

    name: str
    options: tuple[CacheOptions, ...]


def outer_blocks(num_blocks: int) -> int:
    """As many first or last blocks as the published 8 are of FLUX's 57, and no more than those."""
    return max(1, min(8, round(num_blocks * 8 / 57)))


def families(num_blocks: int, steps: int) -> Iterator[Family]:
    """All families that fit a model.

    Args:
        num_blocks: transformer blocks of the model.
        steps: denoising steps; warm-ups are 2/7 of them, as published (8 of 28), and half of that; a quarter too
            for methods that verify their forecast.
    """
    careful = max(1, round(steps * 2 / 7))
    outer = outer_blocks(num_blocks)
    shapes = [(outer, outer), (outer, 0)]
    for warmup, order in product(dict.fromkeys((careful, max(1, careful // 2))), (0, 1)):
        tail = f" warm-up {warmup}" + (f" Taylor {order}" if order else "")
        block = FBCacheOptions(max_cached_steps=-1, warmup_steps=warmup, taylor_order=order)
        yield Family(f"FBCache{tail}", _at_all_thresholds(block))
        for first, last in shapes:
            if first + last < num_blocks and (first, last) != (1, 0):  # F1B0 is FBCache
                dual = DBCacheOptions(
                    Fn_compute_blocks=first, Bn_compute_blocks=last, warmup_steps=warmup, taylor_order=order
                )
                yield Family(f"DBCache F{first}B{last}{tail}", _at_all_thresholds(dual))
        if num_blocks > 2:
            prune = DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=warmup, taylor_order=order)
            yield Family(f"DBPrune F1B1{tail}", _at_all_thresholds(prune))
    # A verified forecast needs less warm-up, and at a third of the blocks a long one takes half of all computed steps.
    for warmup in dict.fromkeys((careful, max(1, careful // 2), max(1, careful // 4))):
        forecast = ForecastCacheOptions(warmup_steps=warmup)
        yield Family(f"ForecastCache warm-up {warmup}", _at_all_thresholds(forecast, ERRORS))
        budgets = tuple(BudgetCacheOptions(warmup_steps=warmup, speedup=speedup) for speedup in SPEEDUPS)
        yield Family(f"BudgetCache warm-up {warmup}", budgets)


def _at_all_thresholds(options: _Judging, thresholds: tuple[float, ...] = THRESHOLDS) -> tuple[_Judging, ...]:
    return tuple(options.model_copy(update={"residual_diff_threshold": value}) for value in thresholds)


def check_families(num_blocks: int, steps: int) -> list[Family]:
    """``families`` as a list, each setting checked against the model."""
    made = list(families(num_blocks, steps))
    for family in made:
        for options in family.options:
            check_block_count(options, num_blocks)
    return made
