"""The rules that are compared at equal shares of computed blocks, each at settings that compute fewer and fewer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.diffusers_caches import configs, drawn_by
from benchmarks.peers import enable_cache_dit
from benchmarks.quality_table import STEPS
from benchmarks.workload import sharing_weights
from cache_core.blocks import find_blocks
from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions, ScheduleCacheOptions
from cache_core.options import CacheOptions, FBCacheOptions, NoCacheOptions
from raycache.models.generating import generate_images
from raycache.tune.sweep import Job, draw

__all__ = ["WARMUP", "Drawn", "Point", "left_out", "points"]

WARMUP = 4
#: Images, and the share of blocks computed for them.
Drawn = tuple[np.ndarray, float]


@dataclass(frozen=True)
class Point:
    """One rule at one setting.

    Attributes:
        rule: name in the table; settings of one rule are joined by a line.
        setting: what varies within the rule.
        drawn: generates a job.
    """

    rule: str
    setting: str
    drawn: Callable[[Any, Job], Drawn]


def points(pipe: Any) -> Iterator[Point]:
    """All points; those of a rule start with the one that computes most."""
    for threshold in (0.06, 0.1, 0.16, 0.26):
        options = FBCacheOptions(
            warmup_steps=WARMUP, max_cached_steps=-1, residual_diff_threshold=threshold, taylor_order=1
        )
        yield Point("FBCache + forecast", str(threshold), _ours(options))
    for nodes, threshold in itertools.product((3, 2), (0.01, 0.02, 0.04, 0.08)):
        own = ForecastCacheOptions(warmup_steps=WARMUP, residual_diff_threshold=threshold, forecast_nodes=nodes)
        yield Point(f"ForecastCache, {nodes} nodes", str(threshold), _ours(own))
    for speedup in (1.7, 2.2, 2.6, 3.2):
        yield Point("BudgetCache", str(speedup), _ours(BudgetCacheOptions(warmup_steps=WARMUP, speedup=speedup)))
    for fit, every in itertools.product((False, True), (2, 3, 4, 5)):
        schedule = ScheduleCacheOptions(
            warmup_steps=WARMUP, compute_every=every, fit_weights=fit, forecast_nodes=3 if fit else 2
        )
        yield Point("ScheduleCache, fitted, 3 nodes" if fit else "ScheduleCache", str(every), _ours(schedule))
    for steps in (16, 12, 9):
        yield Point("fewer steps, no cache", str(steps), _fewer(steps))
    order = _least_important(pipe)
    for kept in (0.63, 0.42, 0.21):
        least = order[: round(len(order) * (1 - kept))]
        yield Point("the same blocks left out in all steps", str(len(order) - len(least)), _without(least))
    for threshold in (0.06, 0.1, 0.16, 0.26):
        yield Point("cache-dit 1.5.3, F1B0 + TaylorSeer", str(threshold), _cache_dit(threshold))
    for every in (2, 3, 4, 5):
        yield Point("cache-dit 1.5.3, SCM + TaylorSeer", str(every), _cache_dit(1.0, every))
    for rule, setting, config in configs(WARMUP):
        yield Point(rule, setting, drawn_by(config))


def _ours(options: CacheOptions) -> Callable[[Any, Job], Drawn]:
    return lambda pipe, job: draw(pipe, job, options)[:2]


def _fewer(steps: int) -> Callable[[Any, Job], Drawn]:
    def drawn(pipe: Any, job: Job) -> Drawn:
        pictures, _, _ = draw(pipe, replace(job, steps=steps), NoCacheOptions())
        return pictures, steps / job.steps

    return drawn


def _cache_dit(threshold: float, every: int | None = None) -> Callable[[Any, Job], Drawn]:
    """One image at a time, because it decides once for a whole batch; the same seeds as ours."""
    mask = None if every is None else [int(i < WARMUP or (i - WARMUP) % every == every - 1) for i in range(STEPS)]

    def drawn(pipe: Any, job: Job) -> Drawn:
        whole, calls = pipe.transformer, [0]
        pipe.transformer = twin = sharing_weights(whole)
        blocks = find_blocks(twin)
        for block in blocks:
            block.module.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        refresh = enable_cache_dit(
            twin, prune=False, first=1, last=0, steps=job.steps, warmup=WARMUP, order=1, mask=mask
        )
        pictures = []
        try:
            for index, prompt in enumerate(job.prompts):
                refresh(threshold)
                pictures.append(generate_images(pipe, [prompt], [index], steps=job.steps, size=job.size))
        finally:
            pipe.transformer = whole
        return np.concatenate(pictures), calls[0] / (len(blocks) * job.steps * len(job.prompts))

    return drawn


def _without(indices: Sequence[int]) -> Callable[[Any, Job], Drawn]:
    def drawn(pipe: Any, job: Job) -> Drawn:
        count = len(find_blocks(pipe.transformer))
        with left_out(pipe.transformer, indices):
            pictures, _, _ = draw(pipe, job, NoCacheOptions())
        return pictures, 1 - len(indices) / count

    return drawn


@contextmanager
def left_out(transformer: Any, indices: Sequence[int]) -> Iterator[None]:
    """Make these blocks return their input."""
    blocks = [find_blocks(transformer)[index].module for index in indices]
    for block in blocks:
        block.forward = lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _least_important(pipe: Any) -> list[int]:
    """Block ids by how much they add to the image tokens over a whole image, smallest first."""
    added: dict[int, float] = {}
    handles = []
    for block in find_blocks(pipe.transformer):

        def note(module: Any, args: Any, kwargs: Any, output: Any, index: int = block.index) -> None:
            moved = (output[1] - kwargs["hidden_states"]).float().norm()
            added[index] = added.get(index, 0.0) + float(moved / output[1].float().norm())

        handles.append(block.module.register_forward_hook(note, with_kwargs=True))
    generator = torch.Generator().manual_seed(0)
    pipe("a red circle on a white background", num_inference_steps=STEPS, width=128, height=128, generator=generator)
    for handle in handles:
        handle.remove()
    return sorted(added, key=added.__getitem__)
