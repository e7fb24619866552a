"""Published measurements of FLUX.1-dev on NVIDIA L20s, each with the same source's figure for one GPU.

1024 x 1024 and 28 steps unless noted. Runs of one setting differ by 12 % between sources (23.56 to 26.36 s on one GPU
without any optimization), so figures of one source are never compared with those of another. Left out: ring attention,
tensor parallelism, projections that overlap with messages, and rows that do not say what was computed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DRAWBENCH_PSNR", "ROWS", "SOURCES", "Row", "Source"]


@dataclass(frozen=True)
class Source:
    """Where a figure was published.

    Attributes:
        name: short name in tables; version: commit, release or pull request number.
    """

    name: str
    address: str
    version: str


_CD = "https://github.com/vipshop/cache-dit/blob"
CONTEXT = Source(
    "cache-dit, CONTEXT_PARALLEL.md",
    f"{_CD}/1888d468cf445a011012a931ad2140496e21583a/docs/user_guide/CONTEXT_PARALLEL.md",
    "commit 1888d46",
)
#: Its four-GPU rows use ParaAttention with `max_ulysses_dim_size=4`.
RELEASE = Source("cache-dit 0.2.2, README", "https://pypi.org/project/cache-dit/0.2.2/", "release 0.2.2")
FRONT_PAGE = Source("cache-dit, README", f"{_CD}/0003c4be8d637069862e585d9186a7bfff79e213/README.md", "commit 0003c4b")
#: Read in a fork, because the author's own repository was not available with this page.
PARA = Source(
    "ParaAttention, fastest_flux.md",
    "https://github.com/zhangvia/ParaAttention/blob/9ac562bc9b4a2a3f0f7c12fffda869516bb45d9d/doc/fastest_flux.md",
    "commit 9ac562b",
)
HYBRID = Source("sglang, hybrid parallelism", "https://github.com/sgl-project/sglang/pull/19405", "PR 19405")
COMPILED = Source("sglang, torch.compile", "https://github.com/sgl-project/sglang/pull/19673", "PR 19673")
DRAWBENCH = Source(
    "cache-dit, DrawBench",
    "https://github.com/xlite-dev/cache-dit/blob/e6385999661384ca38a1d0ede2323eff33a3a748/bench/cache/README.md",
    "commit e638599",
)
SOURCES = (CONTEXT, RELEASE, FRONT_PAGE, PARA, HYBRID, COMPILED, DRAWBENCH)

_BLOCKS, _STEPS = 57, 28


def _share(cached_steps: int, always: int = 1) -> float:
    """Share of all blocks computed if ``cached_steps`` of 28 steps were cached and ``always`` blocks ran in each."""
    return 1 - cached_steps * (_BLOCKS - always) / (_STEPS * _BLOCKS)


@dataclass(frozen=True)
class Row:
    """One published latency.

    Attributes:
        alone_s: this source's seconds on one GPU with the same kernels, uncached; None if not published.
        ranks: number of GPUs, with Ulysses.
        share: share of blocks computed; None: it follows from ``cached_alone_s`` and ``alone_s``.
        cached_alone_s: this source's seconds on one GPU with the same kernels and the same cache, if published.
        decisions: collectives for cache decisions in the whole image.
        message: bytes of an all-to-all relative to bfloat16.
        tokens: of text and image together.
        fitted: whether the model's constants were fitted on this row; all others are held out.
        remark: what differs from our setting.
    """

    source: Source
    what: str
    published_s: float
    alone_s: float | None
    ranks: int = 1
    share: float | None = 1.0
    cached_alone_s: float | None = None
    decisions: int = 0
    message: float = 1.0
    tokens: int = 4096 + 512
    fitted: bool = False
    remark: str = ""


#: CONTEXT_PARALLEL.md has no compiled figure for one GPU: its eager one, times the effect of compiling in PR 19673.
_COMPILED_ALONE_S = 23.56 * 20.3 / 23.6
_BORROWED = "one GPU compiled: 23.56 s x 20.3 / 23.6 of PR 19673"
#: Query, value and output in 8 bits, key in 16.
_FP8_MESSAGE = (3 * 0.5 + 1) / 4
#: Two all-reduces for each block except the first, in each step (docs/performance.md counts them).
_PRUNE_DECISIONS = 2 * _STEPS * (_BLOCKS - 1)

_PARALLEL = tuple(
    Row(CONTEXT, f"Ulysses {ranks}", seconds, 23.56, ranks, fitted=True)
    for ranks, seconds in ((2, 13.80), (2, 13.87), (4, 8.28), (4, 8.22))
)
_PRUNED = tuple(
    Row(RELEASE, f"DBPrune, {pruned:.1%} pruned", seconds, 24.85, share=1 - pruned, fitted=True)
    for pruned, seconds in ((0.24, 19.43), (0.346, 16.82), (0.383, 15.95), (0.452, 14.24), (0.595, 10.66))
)
_FOUR = Row(RELEASE, "Ulysses 4, compiled", 7.75, 20.43, 4, fitted=True)

_TWO_MORE = (
    Row(CONTEXT, "Ulysses 2, compiled", 12.21, _COMPILED_ALONE_S, 2, remark=_BORROWED),
    Row(CONTEXT, "Ulysses 4, compiled", 7.27, _COMPILED_ALONE_S, 4, remark=_BORROWED),
    Row(CONTEXT, "Ulysses 2, FP8 messages", 13.36, 23.56, 2, message=_FP8_MESSAGE),
    Row(
        CONTEXT,
        "Ulysses 2, FP8 messages, compiled",
        11.54,
        _COMPILED_ALONE_S,
        2,
        message=_FP8_MESSAGE,
        remark=_BORROWED,
    ),
    Row(CONTEXT, "Ulysses 2, 1008 x 1008", 13.75, 23.25, 2, tokens=63**2 + 512, remark="Ulysses anything, gloo"),
    Row(HYBRID, "Ulysses 2", 13.92, 23.59, 2, remark="encoder and decoder split, too"),
)
_COMPILED_PRUNED = tuple(
    Row(RELEASE, f"DBPrune, {pruned:.1%} pruned, compiled", seconds, 20.43, share=1 - pruned)
    for pruned, seconds in ((0.24, 16.25), (0.346, 14.12), (0.382, 13.41), (0.451, 12.00), (0.595, 8.86))
)
_FOUR_PRUNED = tuple(
    Row(
        RELEASE,
        f"DBPrune, {pruned:.1%} pruned, Ulysses 4, compiled",
        seconds,
        20.43,
        4,
        share=1 - pruned,
        decisions=_PRUNE_DECISIONS,
    )
    for pruned, seconds in ((0.24, 6.62), (0.346, 6.03), (0.382, 5.81), (0.451, 5.24), (0.595, 3.93))
)
_CACHED = (
    Row(RELEASE, "DBCache F1B0 0.08, 11 steps cached", 15.59, 24.85, share=_share(11)),
    Row(RELEASE, "DBCache F8B8 0.15, 15 steps cached", 15.41, 24.85, share=_share(15, 16)),
    Row(RELEASE, "DBCache F1B0 0.12, 14 steps cached", 12.85, 24.85, share=_share(14)),
    Row(RELEASE, "DBCache F1B0 0.15, 17 steps cached", 10.27, 24.85, share=_share(17)),
    Row(RELEASE, "DBCache F1B0 0.20, 19 steps cached", 8.58, 24.85, share=_share(19)),
    Row(RELEASE, "DBCache F1B0 0.15, 17 cached, compiled", 8.48, 20.43, share=_share(17), remark="TaylorSeer on"),
    Row(FRONT_PAGE, "DBCache F1B0 0.20, mask, 15 cached", 11.4, 24.85, share=_share(15)),
    Row(FRONT_PAGE, "DBCache F1B0 0.30, mask, 19 cached", 8.2, 24.85, share=_share(19)),
)
_ALL_TOGETHER = (
    Row(
        FRONT_PAGE,
        "DBCache, mask, 19 cached, FP8, compiled, 2 GPUs",
        2.9,
        None,
        2,
        share=_share(19),
        cached_alone_s=4.5,
        decisions=2 * _STEPS,
        message=_FP8_MESSAGE,
        remark="SageAttention on 2 GPUs only",
    ),
    *(
        Row(
            PARA,
            f"FBCache 0.12, FP8, compiled, {ranks} GPUs",
            seconds,
            13.40,
            ranks,
            share=None,
            cached_alone_s=7.56,
            decisions=2 * _STEPS,
            remark=f"{how}; decoder split, too",
        )
        for ranks, seconds, how in ((2, 4.92, "ring of 2"), (4, 3.90, "ring of 2 x Ulysses 2"))
    ),
)
#: 50 steps; the share is of operations. The last has a different base, measured in another run on the same page.
_FIFTY = tuple(
    Row(DRAWBENCH, f"50 steps, DBCache {setting}", seconds, alone_s, share=tera / 3726.87)
    for setting, seconds, alone_s, tera in (
        ("F8B0 W8 0.08", 27.87, 42.74, 2162.19),
        ("F1B0 W4 0.08", 23.21, 42.74, 1729.60),
        ("F1B0 W4 MC6 0.24", 15.54, 42.74, 944.75),
        ("F1B0 W8 I4 MC10 0.8", 9.71, 44.61, 505.47),
    )
)

ROWS = (
    *_PARALLEL,
    *_PRUNED,
    _FOUR,
    *_TWO_MORE,
    *_COMPILED_PRUNED,
    *_FOUR_PRUNED,
    *_CACHED,
    *_ALL_TOGETHER,
    *_FIFTY,
)

#: Share of operations, and PSNR to the uncached images in dB, mean of 200 prompts: DrawBench, 50 steps, bfloat16,
#: eager, no TaylorSeer, the best at each share.
DRAWBENCH_PSNR = (
    (505.47 / 3726.87, 28.52),
    (651.90 / 3726.87, 29.34),
    (944.75 / 3726.87, 31.05),
    (1091.18 / 3726.87, 31.31),
    (1164.76 / 3726.87, 31.72),
    (1310.82 / 3726.87, 31.97),
    (1401.61 / 3726.87, 32.95),
    (1604.78 / 3726.87, 33.19),
    (1729.60 / 3726.87, 33.96),
    (1933.17 / 3726.87, 34.54),
    (2072.18 / 3726.87, 34.74),
    (2162.19 / 3726.87, 35.20),
)
