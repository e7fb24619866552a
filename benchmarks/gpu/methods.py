"""The caching methods that are compared, and the timing of one image with one of them."""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.measuring import seconds_of
from benchmarks.gpu.models import Steps
from benchmarks.gpu.plan import Plan, Shape
from benchmarks.gpu.recorder import Cell
from cache_core import CacheReport, DBCacheOptions, DBPruneOptions, FBCacheOptions, cache_session
from cache_core.options import CacheOptions

__all__ = ["METHODS", "image_times", "methods"]

#: Names of all methods, in order of priority.
METHODS = ("no cache", "DBCache", "FBCache", "DBPrune")
#: Far above the effect of bfloat16 and of a drift of a hundredth, far below a jump: all methods decide alike.
_THRESHOLD = 0.12


def methods(shape: Shape) -> dict[str, CacheOptions | None]:
    """Options by name; None means no session."""
    ends: dict[str, Any] = {"Fn_compute_blocks": shape.first, "Bn_compute_blocks": shape.last}
    common: dict[str, Any] = {"warmup_steps": shape.warmup, "residual_diff_threshold": _THRESHOLD}
    options = (
        None,
        DBCacheOptions(**ends, **common),
        FBCacheOptions(max_cached_steps=-1, **common),
        DBPruneOptions(**ends, **common),
    )
    return dict(zip(METHODS, options, strict=True))


def image_times(
    model: Any,
    options: CacheOptions | None,
    plan: Plan,
    group: dist.ProcessGroup | None = None,
) -> tuple[dict[str, Cell], torch.Tensor, CacheReport | None]:
    """Time some images, after a few steps for allocation and compilation.

    Returns:
        Columns of a row: seconds of an image (the median), the least and the most, the share of blocks computed,
        seconds of those first steps. The prediction of the last image's last call, and its report.
    """
    # The last two steps: one that jumps, and the first that may be reused.
    few, steps = Steps(plan.shape, plan.device, plan.shape.warmup + 2), Steps(plan.shape, plan.device)
    report: CacheReport | None = None
    output = torch.empty(0)

    def image(steps: Steps = steps) -> None:
        nonlocal report, output
        with contextlib.nullcontext() if options is None else cache_session(model, options, group) as report:
            output = steps.run(model)

    first = seconds_of(plan.device, lambda: image(few))
    seconds = []
    for _ in range(plan.rounds):
        if group is not None:
            dist.barrier(group)
        seconds.append(seconds_of(plan.device, image))
    row: dict[str, Cell] = {
        "s per image": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "blocks computed": report.computed_block_fraction[0] if report is not None else 1.0,
        "first steps, s": first,
    }
    return row, output, report
