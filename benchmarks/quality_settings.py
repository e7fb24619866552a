"""The settings whose quality is measured: the published ones, with and without forecast, and the peer's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.models import FluxTransformer2DModel

from benchmarks.peers import enable_cache_dit
from cache_core.forecast_options import BudgetCacheOptions
from cache_core.options import CacheOptions, DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions
from raycache.models.generating import generate_images
from raycache.presets import load_presets
from raycache.tune.sweep import Job, clock_of

WARMUP = 8
PARTIAL = (0, 2)


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: name in the table.
        kind: ``FBCache``, ``DBCache`` or ``DBPrune``; a preset's type.
        first: Fn.
        last: Bn.
        threshold: a preset's; None if it is searched.
        share: share of blocks to compute, for which the threshold is searched.
        order: order of the forecast.
        ids: ``Bn_compute_blocks_ids``.
        peer: whether to measure cache-dit too, at the share that ours computed.
        preset: a preset's options, which the other fields only describe.
    """

    name: str
    kind: str
    first: int
    last: int
    threshold: float | None = None
    share: float | None = None
    order: int = 0
    ids: tuple[int, ...] = ()
    peer: bool = False
    preset: CacheOptions | None = None

    def options(self, threshold: float) -> CacheOptions:
        """Our options at a threshold; a preset's options are fixed."""
        if self.preset is not None:
            return self.preset
        if self.kind == "FBCache":
            return FBCacheOptions(
                max_cached_steps=-1,
                warmup_steps=WARMUP,
                residual_diff_threshold=threshold,
                taylor_order=self.order,
            )
        if self.kind == "DBPrune":
            return DBPruneOptions(
                Fn_compute_blocks=self.first,
                Bn_compute_blocks=self.last,
                warmup_steps=WARMUP,
                residual_diff_threshold=threshold,
                taylor_order=self.order,
            )
        return DBCacheOptions(
            Fn_compute_blocks=self.first,
            Bn_compute_blocks=self.last,
            Bn_compute_blocks_ids=self.ids,
            non_compute_blocks_diff_threshold=0,
            warmup_steps=WARMUP,
            residual_diff_threshold=threshold,
            taylor_order=self.order,
        )


def settings() -> list[Setting]:
    """All settings, at shares of blocks: without the forecast, with it; and presets. DBPrune's shares are published.

    Thresholds are searched: published ones were found on another model and mean nothing on this one. The shapes
    published for FLUX's 57 blocks, F8B8, F12B12 and F8B16, are F3B3, F4B4 and F3B6 of the model's 20.
    """
    plain = [
        *(Setting(f"FBCache at {p} %", "FBCache", 1, 0, share=p / 100, peer=True) for p in (60, 45)),
        *(Setting(f"DBCache F3B3 at {p} %", "DBCache", 3, 3, share=p / 100, peer=True) for p in (75, 60)),
        Setting("DBCache F3B3 partial Bn at 60 %", "DBCache", 3, 3, share=0.6, ids=PARTIAL),
        Setting("DBCache F4B4 at 75 %", "DBCache", 4, 4, share=0.75),
        Setting("DBCache F3B6 at 75 %", "DBCache", 3, 6, share=0.75),
        *(
            Setting(f"DBPrune, {pruned} % pruned", "DBPrune", 1, 1, share=1 - pruned / 100, peer=pruned in (24, 45, 60))
            for pruned in (24, 35, 38, 45, 60)
        ),
    ]
    forecast = [Setting(f"{s.name} + forecast", s.kind, s.first, s.last, s.threshold, s.share, 1, s.ids) for s in plain]
    return plain + forecast + presets()


def presets() -> list[Setting]:
    """What a request's ``quality`` picks on the bundled model; ``exact`` is the uncached reference."""
    return [
        Setting(f"{options.type}, preset `{name}`", options.type, 0, 0, _value(options), preset=options)
        for name, options in load_presets("demo").presets.items()
        if not isinstance(options, NoCacheOptions)
    ]


def _value(options: CacheOptions) -> float:
    """The one number that says how much an image is cached."""
    if isinstance(options, NoCacheOptions):
        raise ValueError("an uncached preset has no such number")
    return options.speedup if isinstance(options, BudgetCacheOptions) else options.residual_diff_threshold


def cache_dit_on(
    transformer: FluxTransformer2DModel, setting: Setting, steps: int
) -> Callable[[float, Job, Any], tuple[np.ndarray, float]]:
    """Enable cache-dit on a transformer; returns a function from threshold and job to images and seconds per image."""
    refresh = enable_cache_dit(
        transformer,
        prune=setting.kind == "DBPrune",
        first=setting.first,
        last=setting.last,
        steps=steps,
        warmup=WARMUP,
    )

    def draw(threshold: float, job: Job, pipe: Any) -> tuple[np.ndarray, float]:
        images = []
        clock = clock_of(pipe)
        started = clock()
        for index, prompt in enumerate(job.prompts):
            refresh(threshold)
            # The same seeds as ours, which seed each image of a batch by its position and the batch's first number.
            drawn = generate_images(pipe, [prompt], [index], steps=job.steps, size=job.size)
            images.append(drawn)
        return np.concatenate(images), (clock() - started) / len(job.prompts)

    return draw
