"""Training-free caching of transformer blocks for diffusers pipelines: DBCache, FBCache, DBPrune and ForecastCache.

Works without Ray. Every rank of a context-parallel group takes the same decision, per image of a batch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_core.blocks import UnsupportedModelError
    from cache_core.cache_type import CacheType
    from cache_core.consensus import RanksParted
    from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions, ScheduleCacheOptions
    from cache_core.joined_calls import JobCall, job_call, joined
    from cache_core.method_options import BlockCountError
    from cache_core.opening import cache_session, job_session
    from cache_core.options import (
        CacheOptions,
        DBCacheOptions,
        DBPruneOptions,
        FBCacheOptions,
        NoCacheOptions,
        check_block_count,
        parse_options,
    )
    from cache_core.other_caches import AnotherCacheError
    from cache_core.para_attention import repair_para_attention
    from cache_core.parallel_group import find_group
    from cache_core.pipe import apply_cache_on_pipe, cache_reports, cache_summary, remove_cache
    from cache_core.policies.image_options import without_thresholds
    from cache_core.report import CacheReport
    from cache_core.session import JobAborted
    from cache_core.supported import supported_models

__all__ = [
    "AnotherCacheError",
    "BlockCountError",
    "BudgetCacheOptions",
    "CacheOptions",
    "CacheReport",
    "CacheType",
    "DBCacheOptions",
    "DBPruneOptions",
    "FBCacheOptions",
    "ForecastCacheOptions",
    "JobAborted",
    "JobCall",
    "NoCacheOptions",
    "RanksParted",
    "ScheduleCacheOptions",
    "UnsupportedModelError",
    "apply_cache_on_pipe",
    "cache_reports",
    "cache_session",
    "cache_summary",
    "check_block_count",
    "find_group",
    "job_call",
    "job_session",
    "joined",
    "parse_options",
    "remove_cache",
    "repair_para_attention",
    "supported_models",
    "without_thresholds",
]

# torch and diffusers take seconds to import. A process that needs only the options, such as an ingress, must not wait.
_NAMES = {
    "blocks": ("UnsupportedModelError",),
    "consensus": ("RanksParted",),
    "forecast_options": ("BudgetCacheOptions", "ForecastCacheOptions", "ScheduleCacheOptions"),
    "joined_calls": ("JobCall", "job_call", "joined"),
    "opening": ("cache_session", "job_session"),
    "cache_type": ("CacheType",),
    "method_options": ("BlockCountError",),
    "options": (
        "CacheOptions",
        "DBCacheOptions",
        "DBPruneOptions",
        "FBCacheOptions",
        "NoCacheOptions",
        "check_block_count",
        "parse_options",
    ),
    "other_caches": ("AnotherCacheError",),
    "para_attention": ("repair_para_attention",),
    "parallel_group": ("find_group",),
    "policies.image_options": ("without_thresholds",),
    "pipe": ("apply_cache_on_pipe", "cache_reports", "cache_summary", "remove_cache"),
    "report": ("CacheReport",),
    "session": ("JobAborted",),
    "supported": ("supported_models",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"cache_core.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
