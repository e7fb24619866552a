"""Our caches and their peers behind one interface: prepare a transformer once, then run whole images on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from benchmarks.peers import enable_cache_dit
from cache_core import DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from cache_core.hooks import Attachment

__all__ = ["Contender", "contenders"]


@dataclass(frozen=True)
class Contender:
    """One way to cache.

    Attributes:
        name: how the table calls it.
        kind: ``none``, ``first block``, ``dual block`` or ``prune``: rows to compare with each other.
        prepare: attaches it to a transformer; returns a context manager factory that surrounds each image.
    """

    name: str
    kind: str
    prepare: Callable[[nn.Module], Callable[[], Any]]


def contenders(
    *, first: int, last: int, threshold: float, steps: int, group: dist.ProcessGroup | None = None
) -> list[Contender]:
    """All contenders with the same decisions: the first step computed, then compared in every step.

    Args:
        first, last: Fn and Bn of the dual-block rows; the prune rows take Fn=1, Bn=0.
        threshold: far from both the small and the large differences of the schedule, so that all decide alike.
        steps: transformer calls of one image.
        group: ranks that decide together, for ours; peers find theirs themselves.
    """
    dual = {"warmup_steps": 1, "residual_diff_threshold": threshold}
    prune = DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, **dual)
    return [
        Contender("no cache", "none", lambda _: _nothing),
        Contender("cache_core, hooks only", "none", _ours(NoCacheOptions(), group)),
        Contender("cache_core FBCache", "first block", _ours(FBCacheOptions(max_cached_steps=-1, **dual), group)),
        Contender("cache-dit 1.5.3 F1B0", "first block", _cache_dit(False, 1, 0, threshold, steps)),
        Contender("diffusers FirstBlockCache", "first block", _diffusers_first_block(threshold)),
        Contender(
            f"cache_core DBCache F{first}B{last}",
            "dual block",
            _ours(DBCacheOptions(Fn_compute_blocks=first, Bn_compute_blocks=last, **dual), group),
        ),
        Contender(f"cache-dit 1.5.3 F{first}B{last}", "dual block", _cache_dit(False, first, last, threshold, steps)),
        Contender("cache_core DBPrune", "prune", _ours(prune, group)),
        Contender("cache-dit 1.5.3 DBPrune", "prune", _cache_dit(True, 1, 0, threshold, steps)),
    ]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _ours(options: Any, group: dist.ProcessGroup | None) -> Callable[[nn.Module], Callable[[], Any]]:
    def prepare(transformer: nn.Module) -> Callable[[], Any]:
        Attachment(transformer).kept = True  # once, as apply_cache_on_pipe does, and peers
        return lambda: cache_session(transformer, options, group)

    return prepare


def _cache_dit(prune: bool, first: int, last: int, threshold: float, steps: int) -> Callable[[nn.Module], Any]:
    def prepare(transformer: nn.Module) -> Callable[[], Any]:
        refresh = enable_cache_dit(transformer, prune=prune, first=first, last=last, steps=steps, warmup=1)

        @contextmanager
        def picture() -> Iterator[None]:
            refresh(threshold)
            yield

        return picture

    return prepare


def _diffusers_first_block(threshold: float) -> Callable[[nn.Module], Any]:
    def prepare(transformer: nn.Module) -> Callable[[], Any]:
        from diffusers.hooks import FirstBlockCacheConfig

        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))

        @contextmanager
        def picture() -> Iterator[None]:
            transformer._reset_stateful_cache()
            yield

        return picture

    return prepare
