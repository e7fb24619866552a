"""The rules that are compared at equal shares of computed blocks, each at settings that compute fewer and fewer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.diffusers_caches import configs, drawn_by
from benchmarks.leaving_out import best_left_out, captions_to_choose_by, left_out
from benchmarks.peers import enable_cache_dit
from benchmarks.quality_table import STEPS
from benchmarks.workload import sharing_weights
from cache_core.blocks import find_blocks
from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions, ScheduleCacheOptions
from cache_core.options import CacheOptions, FBCacheOptions, NoCacheOptions
from raycache.models.generating import generate_images
from raycache.tune.sweep import Job, draw

__all__ = ["FEW", "WARMUP", "Drawn", "Point", "points"]

WARMUP = 4
#: Captions of rules that generate one image at a time and are far from the others.
FEW = 48
#: Images, and the share of blocks computed for them.
Drawn = tuple[np.ndarray, float]


@dataclass(frozen=True)
class Point:
    """One rule at one setting.

    Attributes:
        rule: name in the table; settings of one rule are joined by a line.
        setting: what varies within the rule.
        drawn: generates a job.
        captions: how many of the captions it generates at most.
    """

    rule: str
    setting: str
    drawn: Callable[[Any, Job], Drawn]
    captions: int | None = None


def points(pipe: Any) -> Iterator[Point]:
    """All points; those of a rule start with the one that computes most."""
    for warmup in (WARMUP, WARMUP // 2):
        yield from _ours_after(warmup)
    for threshold in (0.01, 0.02, 0.04, 0.08, 0.25, 0.6):
        own = ForecastCacheOptions(warmup_steps=WARMUP, residual_diff_threshold=threshold, forecast_nodes=2)
        yield Point("ForecastCache, 2 nodes", str(threshold), _ours(own))
    for steps in (16, 12, 9):
        yield Point("fewer steps, no cache", str(steps), _fewer(steps))
    total = len(find_blocks(pipe.transformer))
    least = functools.cache(functools.partial(_missed_least, pipe, round(0.7 * total)))  # takes minutes
    for count in (0.4, 0.5, 0.6, 0.7):
        out = round(count * total)
        yield Point("the same blocks left out in all steps", str(total - out), _without(least, out))
    for threshold in (0.06, 0.1, 0.16, 0.26, 0.36):
        yield Point("cache-dit 1.5.3, F1B0 + TaylorSeer", str(threshold), _cache_dit(threshold))
    for every in (2, 3, 4, 5):
        yield Point("cache-dit 1.5.3, SCM + TaylorSeer", str(every), _cache_dit(1.0, every))
    for rule, setting, config in configs(WARMUP):
        yield Point(rule, setting, drawn_by(config), FEW)


def _ours_after(warmup: int) -> Iterator[Point]:
    """Our rules with a warm-up; those that peers have too decide as theirs do, and draw their images."""
    tail = "" if warmup == WARMUP else f", warm-up {warmup}"
    for threshold in (0.06, 0.1, 0.16, 0.26, 0.36):
        options = FBCacheOptions(
            warmup_steps=warmup, max_cached_steps=-1, residual_diff_threshold=threshold, taylor_order=1
        )
        yield Point(f"FBCache + forecast{tail}", str(threshold), _ours(options))
    for threshold in (0.01, 0.02, 0.04, 0.08, 0.25, 0.6):
        own = ForecastCacheOptions(warmup_steps=warmup, residual_diff_threshold=threshold)
        yield Point(f"ForecastCache, 3 nodes{tail}", str(threshold), _ours(own))
    for speedup in (1.7, 2.2, 2.6, 3.2):
        yield Point(f"BudgetCache{tail}", str(speedup), _ours(BudgetCacheOptions(warmup_steps=warmup, speedup=speedup)))
    for fit, every in itertools.product((False, True), (2, 3, 4, 5)):
        schedule = ScheduleCacheOptions(
            warmup_steps=warmup, compute_every=every, fit_weights=fit, forecast_nodes=3 if fit else 2
        )
        yield Point(f"ScheduleCache{', fitted, 3 nodes' if fit else ''}{tail}", str(every), _ours(schedule))


def _ours(options: CacheOptions) -> Callable[[Any, Job], Drawn]:
    return lambda pipe, job: draw(pipe, job, options)[:2]


def _fewer(steps: int) -> Callable[[Any, Job], Drawn]:
    def drawn(pipe: Any, job: Job) -> Drawn:
        images, _, _ = draw(pipe, replace(job, steps=steps), NoCacheOptions())
        return images, steps / job.steps

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
        images = []
        try:
            for index, prompt in enumerate(job.prompts):
                refresh(threshold)
                images.append(generate_images(pipe, [prompt], [index], steps=job.steps, size=job.size))
        finally:
            pipe.transformer = whole
        return np.concatenate(images), calls[0] / (len(blocks) * job.steps * len(job.prompts))

    return drawn


def _without(least: Callable[[], list[int]], count: int) -> Callable[[Any, Job], Drawn]:
    def drawn(pipe: Any, job: Job) -> Drawn:
        with left_out(pipe.transformer, least()[:count]):
            images, _, _ = draw(pipe, job, NoCacheOptions())
        return images, 1 - count / len(find_blocks(pipe.transformer))

    return drawn


def _missed_least(pipe: Any, count: int) -> list[int]:
    """Block ids in the order in which to leave them out, chosen on other captions than those of the table."""
    job = captions_to_choose_by(4)
    references, _, _ = draw(pipe, job, NoCacheOptions())
    *_, (chosen, _) = best_left_out(pipe, job, references, count)
    return chosen
