"""The methods by their published names, and the options published with them.

Names, defaults and printed forms are those of cache-dit v0.1.5, so that its README works with another import;
ForecastCache, BudgetCache and ScheduleCache are this project's own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

__all__ = ["CacheType"]


class CacheType(StrEnum):
    """The methods. The value is the name in YAML and JSON; the published long names are printed and also accepted."""

    NONE = "none"
    FBCache = "FBCache"
    DBCache = "DBCache"
    DBPrune = "DBPrune"
    ForecastCache = "ForecastCache"
    BudgetCache = "BudgetCache"
    ScheduleCache = "ScheduleCache"

    def __repr__(self) -> str:
        return f"<{self.__class__.__name__}.{self.name}: {_LONG_NAMES[self.name]!r}>"

    @classmethod
    def _missing_(cls, value: object) -> CacheType | None:
        named = None if value is None else str(value).lower().replace("_", "")
        for name, aliases in _ALIASES.items():
            if named in aliases:
                return cls[name]
        raise ValueError(f"cache_type={value!r} is unknown; legal values: {', '.join(cls)}")

    @staticmethod
    def type(cache_type: CacheType | str | None) -> CacheType:
        """The method of a name, spelled in any of the published ways (``"db"``, ``"dual_block_cache"``, ...).

        Raises:
            ValueError: an unknown method; lists the known ones.
        """
        return CacheType.NONE if cache_type is None else CacheType(cache_type)

    cache_type = type

    @staticmethod
    def default_options(cache_type: CacheType | str) -> dict[str, Any]:
        """Keyword arguments for :func:`cache_core.apply_cache_on_pipe`, as published.

        Raises:
            ValueError: an unknown method; lists the known ones.
        """
        method = CacheType(cache_type)
        options = {name: list(value) if value == [] else value for name, value in _DEFAULTS[method.name].items()}
        return {"cache_type": method, **options}

    @staticmethod
    def range(start: int, end: int, step: int = 1) -> list[int]:
        """Every ``step``-th id of ``start..end-1``, always with the first and last id; ``step <= 1`` gives ``[]``.

        Made for ``Bn_compute_blocks_ids``, where the empty list means "all".

        >>> CacheType.range(0, 16, 4)
        [0, 4, 8, 12, 15]
        """
        if step <= 1 or end <= start:
            return []
        return sorted({0, *range(start, end, step), end - 1})


_LONG_NAMES = {
    "NONE": "NONE",
    "FBCache": "First_Block_Cache",
    "DBCache": "Dual_Block_Cache",
    "DBPrune": "Dynamic_Block_Prune",
    "ForecastCache": "Forecast_Cache",
    "BudgetCache": "Budget_Cache",
    "ScheduleCache": "Schedule_Cache",
}
#: Published spellings, in lower case and without underscores.
_ALIASES = {
    "NONE": {"none", "no", "nocache", "nonecache"},
    "FBCache": {"fb", "fbcache", "firstblockcache"},
    "DBCache": {"db", "dbcache", "dualblockcache"},
    "DBPrune": {"dbp", "dbprune", "dynamicblockprune"},
    "ForecastCache": {"forecast", "forecastcache"},
    "BudgetCache": {"budget", "budgetcache"},
    "ScheduleCache": {"schedule", "schedulecache"},
}
#: In the published order, because people print these. Options without effect here are dropped when used.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "NONE": {},
    "FBCache": {"residual_diff_threshold": 0.08, "warmup_steps": 8, "max_cached_steps": 8},
    "DBCache": {
        "residual_diff_threshold": 0.12,
        "warmup_steps": 8,
        "max_cached_steps": -1,
        "Fn_compute_blocks": 8,
        "Bn_compute_blocks": 8,
        "max_Fn_compute_blocks": 16,
        "max_Bn_compute_blocks": 16,
        "Fn_compute_blocks_ids": [],
        "Bn_compute_blocks_ids": [],
    },
    "DBPrune": {
        "residual_diff_threshold": 0.08,
        "Fn_compute_blocks": 8,
        "Bn_compute_blocks": 8,
        "warmup_steps": 8,
        "max_pruned_steps": -1,
    },
    "ForecastCache": {
        "residual_diff_threshold": 0.04,
        "warmup_steps": 4,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": 4,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "forecast_nodes": 3,
    },
    "BudgetCache": {
        "speedup": 2.0,
        "warmup_steps": 4,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "forecast_nodes": 3,
    },
    "ScheduleCache": {
        "warmup_steps": 4,
        "compute_every": 2,
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "forecast_nodes": 2,
    },
}
