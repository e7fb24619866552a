"""Our caches and their peers behind one interface: prepare a transformer once, then run whole images on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from diffusers.models import FluxTransformer2DModel

from benchmarks.peers import enable_cache_dit
from cache_core import DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from cache_core.forecast_options import ForecastCacheOptions
from cache_core.hooks import Attachment
from cache_core.options import CacheOptions

__all__ = ["Contender", "contenders"]

#: Runs one image; its whole time is measured.
Image = Callable[[], Any]
#: Attaches a method to a transformer; returns a context manager factory that surrounds each image.
Prepare = Callable[[FluxTransformer2DModel], Image]


@dataclass(frozen=True)
class Contender:
    """One way to cache.

    Attributes:
        name: its name in the table.
        kind: ``none``, ``first block``, ``forecast``, ``dual block`` or ``prune``: rows to compare with each other.
        prepare: attaches it to a transformer; returns a context manager factory that surrounds each image.
    """

    name: str
    kind: str
    prepare: Prepare


def contenders(
    *, first: int, last: int, threshold: float, steps: int, group: dist.ProcessGroup | None = None
) -> list[Contender]:
    """All contenders with the same decisions: the first step computed, then compared in every step.

    Args:
        first, last: Fn and Bn of the dual-block rows; the prune rows take Fn=1, Bn=0.
        threshold: far from both the small and the large differences of the schedule, so that all decide alike.
        steps: transformer calls of one image.
        group: ranks that decide together, for our methods; peers find theirs themselves.
    """
    first_block = FBCacheOptions(max_cached_steps=-1, warmup_steps=1, residual_diff_threshold=threshold)
    dual = DBCacheOptions(
        Fn_compute_blocks=first, Bn_compute_blocks=last, warmup_steps=1, residual_diff_threshold=threshold
    )
    forecast = ForecastCacheOptions(warmup_steps=1, residual_diff_threshold=threshold, max_continuous_cached_steps=-1)
    prune = DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, warmup_steps=1, residual_diff_threshold=threshold)
    return [
        Contender("no cache", "none", lambda _: _nothing),
        Contender("cache_core, hooks only", "none", _ours(NoCacheOptions(), group)),
        Contender("cache_core FBCache", "first block", _ours(first_block, group)),
        Contender("cache-dit 1.5.3 F1B0", "first block", _cache_dit(False, 1, 0, threshold, steps)),
        Contender("diffusers FirstBlockCache", "first block", _diffusers_first_block(threshold)),
        Contender("cache_core ForecastCache", "forecast", _ours(forecast, group)),
        Contender(f"cache_core DBCache F{first}B{last}", "dual block", _ours(dual, group)),
        Contender(f"cache-dit 1.5.3 F{first}B{last}", "dual block", _cache_dit(False, first, last, threshold, steps)),
        Contender("cache_core DBPrune", "prune", _ours(prune, group)),
        Contender("cache-dit 1.5.3 DBPrune", "prune", _cache_dit(True, 1, 0, threshold, steps)),
    ]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _ours(options: CacheOptions, group: dist.ProcessGroup | None) -> Prepare:
    def prepare(transformer: FluxTransformer2DModel) -> Callable[[], Any]:
        Attachment(transformer).kept = True  # attached once, as apply_cache_on_pipe and the peers do
        return lambda: cache_session(transformer, options, group)

    return prepare


def _cache_dit(prune: bool, first: int, last: int, threshold: float, steps: int) -> Prepare:
    def prepare(transformer: FluxTransformer2DModel) -> Callable[[], Any]:
        refresh = enable_cache_dit(transformer, prune=prune, first=first, last=last, steps=steps, warmup=1)

        @contextmanager
        def image() -> Iterator[None]:
            refresh(threshold)
            yield

        return image

    return prepare


def _diffusers_first_block(threshold: float) -> Prepare:
    def prepare(transformer: FluxTransformer2DModel) -> Callable[[], Any]:
        from diffusers.hooks import FirstBlockCacheConfig

        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))

        @contextmanager
        def image() -> Iterator[None]:
            transformer._reset_stateful_cache()
            yield

        return image

    return prepare
