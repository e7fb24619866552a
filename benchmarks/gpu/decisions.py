"""Section *decisions*: the cost of a decision in microseconds, at FLUX.1-dev's activation size."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from typing import Any

import torch

from benchmarks.gpu.measuring import attempt, seconds_of
from benchmarks.gpu.models import Steps
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from benchmarks.workload import flux_with_free_blocks
from cache_core import DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from cache_core.options import CacheOptions

__all__ = ["measure"]

TABLE = "Cost per decision"
_NEVER: dict[str, Any] = {"warmup_steps": 0, "residual_diff_threshold": 1e-9}
_DECIDING: dict[str, CacheOptions] = {
    "FBCache": FBCacheOptions(**_NEVER),
    "DBCache F2B2": DBCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=2, **_NEVER),
    "DBPrune F1B0": DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, **_NEVER),
}


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """A row for each method: an image that decides wherever it can and never reuses, minus one with hooks only."""
    recorder.note(
        "Blocks only add a constant, so the cost of Python and of kernel launches is fully visible. Real blocks keep "
        "the device busy meanwhile; the section on efficiency shows what remains of it then."
    )
    shape = dataclasses.replace(plan.shape, doubles=4, singles=8, text_channels=256, pooled=64)
    with attempt(recorder, "a model of free blocks", plan.device):
        model = flux_with_free_blocks(
            doubles=shape.doubles,
            singles=shape.singles,
            heads=shape.heads,
            head_dim=shape.head_dim,
            dtype=getattr(torch, shape.dtype),
            device=plan.device,
            tokens=shape.tokens,
            text=shape.text,
        )
        steps = Steps(shape, plan.device, 4 if plan.small else 12)
        blocks = (shape.doubles + shape.singles) * steps.count
        times = _times(model, steps, plan)
        plain, hooks = times.pop("plain")[0], times["hooks"][0]
        costs = [1e6 * (b - a) / blocks for a, b in zip(plain, hooks, strict=True)]
        recorder.add(TABLE, what="hooks, each block", times=blocks, **{"µs each": statistics.median(costs)})
        for name in _DECIDING:
            seconds, decisions = times[name]
            costs = [1e6 * (b - a) / decisions for a, b in zip(hooks, seconds, strict=True)]
            recorder.add(TABLE, what=f"{name}, each decision", times=decisions, **{"µs each": statistics.median(costs)})


def _times(model: Any, steps: Steps, plan: Plan) -> dict[str, tuple[list[float], int]]:
    """Seconds of images, in turns, and decisions of one image, by what was around the model."""
    ways: dict[str, CacheOptions | None] = {"plain": None, "hooks": NoCacheOptions(), **_DECIDING}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    decisions = dict.fromkeys(ways, 0)
    for number in range(2 if plan.small else 8):
        for name, options in ways.items():
            with contextlib.nullcontext() if options is None else cache_session(model, options) as report:
                spent = seconds_of(plan.device, lambda: steps.run(model))
            if report is not None:
                decisions[name] = sum(len(image.differences) for step in report.steps for image in step.images)
            if number:  # the first round includes allocation
                seconds[name].append(spent)
    return {name: (seconds[name], decisions[name]) for name in ways}
