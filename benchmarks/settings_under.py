"""Settings that generate an image within a goal on one, two and four L20s, and their PSNR, by the capacity model.

Nothing here was measured: kernel factors come from published pairs of one source each, shares of blocks are those that
cache-dit published at 28 steps, and errors are those of the most similar held-back rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.capacity_model import FLUX_DEV_1024, L20, errors, seconds
from benchmarks.published import DRAWBENCH_PSNR, ROWS

__all__ = ["CACHES", "KERNELS", "Cache", "Kernels", "Span", "psnr", "span", "underestimates"]

_STEPS = FLUX_DEV_1024.steps


@dataclass(frozen=True)
class Kernels:
    """How blocks are computed: factors on one GPU's compute seconds, the lowest and the highest of the sources."""

    name: str
    least: float
    most: float

    @property
    def middle(self) -> float:
        """The mean of the two."""
        return (self.least + self.most) / 2


@dataclass(frozen=True)
class Cache:
    """A cache setting by name, and how many of 28 steps were cached with it in the publication."""

    name: str
    cached_steps: int
    always: int = 1

    @property
    def share(self) -> float:
        """The share of blocks that is computed."""
        return 1 - self.cached_steps * (FLUX_DEV_1024.blocks - self.always) / (_STEPS * FLUX_DEV_1024.blocks)


@dataclass(frozen=True)
class Span:
    """Predicted seconds with their bounds."""

    seconds: float
    least: float
    most: float


def _ratio(after_s: float, before_s: float) -> float:
    """The ratio of compute seconds, from two figures for one GPU by one source."""
    return (after_s - FLUX_DEV_1024.serial_s) / (before_s - FLUX_DEV_1024.serial_s)


#: Compiled: cache-dit 0.2.2 and sglang PR 19673. FP8 and compiled: ParaAttention, and cache-dit's README, which gives
#: FP8 over compiled (4.5 over 7.1 s, both with the same cache).
_COMPILED = sorted((_ratio(20.43, 24.85), _ratio(20.3, 23.6)))
_FP8 = sorted((_ratio(13.40, 26.36), *(factor * _ratio(4.5, 7.1) for factor in _COMPILED)))
KERNELS = (
    Kernels("bfloat16, eager", 1.0, 1.0),
    Kernels("bfloat16, compiled", _COMPILED[0], _COMPILED[-1]),
    Kernels("FP8, compiled", _FP8[0], _FP8[-1]),
)
#: One GPU without any optimization: the lowest and the highest of all sources at this size.
_ALONE_S = (23.56, 26.36)

CACHES = (
    Cache("none", 0),
    Cache("FBCache (F1B0) 0.08", 11),
    Cache("FBCache (F1B0) 0.12", 14),
    Cache("FBCache (F1B0) 0.15", 17),
    Cache("FBCache (F1B0) 0.20", 19),
)


def underestimates() -> tuple[float, float]:
    """The lowest and the highest error of held-back rows with a cache on several GPUs."""
    alike = errors([row for row in ROWS if not row.fitted and row.ranks > 1 and row.share != 1.0])
    return min(alike), max(alike)


def span(kernels: Kernels, cache: Cache, ranks: int) -> Span:
    """Seconds of our implementation: two all-to-alls per block, one all-reduce per decision.

    The bounds are the model's for the fastest and the slowest published GPU, with the kernels' lowest and highest
    factor, corrected by the largest error in that direction of a similar row.
    """

    def of(alone_s: float, factor: float) -> float:
        machine = replace(L20, compute_s=alone_s - FLUX_DEV_1024.serial_s)
        decisions = _STEPS if cache.cached_steps else 0
        return seconds(FLUX_DEV_1024, machine, ranks, computed=cache.share, factor=factor, decisions=decisions)

    low, high = underestimates()
    middle_s = L20.compute_s + FLUX_DEV_1024.serial_s
    return Span(
        of(middle_s, kernels.middle),
        of(_ALONE_S[0], kernels.least) / (1 + high),
        of(_ALONE_S[1], kernels.most) / (1 + low),
    )


def psnr(share: float, known: Sequence[tuple[float, float]] = DRAWBENCH_PSNR) -> float | None:
    """PSNR in dB of the cache alone at this share of blocks, interpolated between published points; None outside."""
    import numpy as np

    shares, values = zip(*known, strict=True)
    if not shares[0] <= share <= shares[-1]:
        return None
    return float(np.interp(share, shares, values))
