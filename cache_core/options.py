"""Options of the cache: one frozen pydantic model per method, under the published option names.

The names and defaults are those of cache-dit v0.1.5, where DBCache, FBCache and DBPrune were first published, so that
existing settings carry over. In YAML and JSON the method is the field ``type``: ``none | FBCache | DBCache | DBPrune |
ForecastCache | BudgetCache | ScheduleCache``; the last three are this project's own
(:mod:`cache_core.forecast_options`).
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator

from cache_core.cache_type import CacheType
from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions, ScheduleCacheOptions
from cache_core.method_options import BlockCountError, MethodOptions, check_ends
from cache_core.option_kinds import (
    BlockId,
    StepLimit,
    TaylorOrder,
    Threshold,
    never_judged,
    no_block_between,
    no_step_allowed,
)

__all__ = [
    "CacheOptions",
    "DBCacheOptions",
    "DBPruneOptions",
    "FBCacheOptions",
    "NoCacheOptions",
    "check_block_count",
    "method_names",
    "option_names",
    "parse_options",
]


class NoCacheOptions(MethodOptions):
    """Compute every block in every step."""

    policy = "cache_core.policies.no_cache:ComputeAll"
    remembers = False

    type: Literal["none"] = "none"


class DBCacheOptions(MethodOptions):
    """Dual-block cache: Fn blocks decide, the middle is reused, Bn blocks correct.

    Args:
        Fn_compute_blocks: first blocks, computed in every step; their residual is what the decision compares.
        Bn_compute_blocks: last blocks, computed in every step (but see ``Bn_compute_blocks_ids``).
        warmup_steps: the first steps of a branch that are always computed.
        max_cached_steps: cached steps allowed per image and branch; -1 = no limit.
        max_continuous_cached_steps: cached steps allowed in a row; any computed step ends a row. -1 = no limit.
        residual_diff_threshold: relative L1 difference below which (strictly) the middle is reused.
        Bn_compute_blocks_ids: positions within the Bn group (0 .. Bn-1) that are always computed. The others are
            compared one by one in a cached step. Empty = all are always computed.
        non_compute_blocks_diff_threshold: the threshold for those others; 0 falls back to ``residual_diff_threshold``.
        taylor_order: order of the residual forecast.
    """

    policy = "cache_core.policies.dual_block:DualBlock"
    thresholds = frozenset({"residual_diff_threshold", "non_compute_blocks_diff_threshold"})
    structure = frozenset({"Fn_compute_blocks", "Bn_compute_blocks", "Bn_compute_blocks_ids"})

    type: Literal["DBCache"] = "DBCache"
    Fn_compute_blocks: int = Field(default=8, ge=1)
    Bn_compute_blocks: int = Field(default=8, ge=0)
    warmup_steps: int = Field(default=8, ge=0)
    max_cached_steps: StepLimit = -1
    max_continuous_cached_steps: StepLimit = -1
    residual_diff_threshold: Threshold = 0.12
    Bn_compute_blocks_ids: tuple[BlockId, ...] = ()
    non_compute_blocks_diff_threshold: Threshold = 0.08
    taylor_order: TaylorOrder = 0

    @property
    def computed_steps(self) -> int:
        return self.warmup_steps

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        return [
            *never_judged(self, steps),
            *no_step_allowed(self.max_cached_steps, self.max_continuous_cached_steps),
            *no_block_between(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks),
        ]

    def check(self, num_blocks: int) -> None:
        check_ends(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks)

    @property
    def tail_threshold(self) -> float:
        """The threshold of the Bn blocks that are compared."""
        return self.non_compute_blocks_diff_threshold or self.residual_diff_threshold

    @field_validator("Bn_compute_blocks_ids")
    @classmethod
    def _bn_ids_lie_in_bn(cls, ids: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        last = info.data.get("Bn_compute_blocks")  # absent if it was itself invalid
        if last is not None and (outside := [i for i in ids if i >= last]):
            legal = f"the legal range is 0..{last - 1}" if last else "only the empty list is legal"
            raise ValueError(f"{outside} lie outside the Bn group: with Bn_compute_blocks={last}, {legal}")
        return ids


class FBCacheOptions(MethodOptions):
    """First-block cache: DBCache with Fn=1, Bn=0."""

    policy = DBCacheOptions.policy
    thresholds = frozenset({"residual_diff_threshold"})

    type: Literal["FBCache"] = "FBCache"
    warmup_steps: int = Field(default=8, ge=0)
    max_cached_steps: StepLimit = 8
    max_continuous_cached_steps: StepLimit = -1
    residual_diff_threshold: Threshold = 0.08
    taylor_order: TaylorOrder = 0

    @property
    def computed_steps(self) -> int:
        return self.warmup_steps

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        return self.as_dbcache().why_nothing_is_saved(steps, num_blocks)

    def check(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise BlockCountError("type", "FBCache needs at least 1 block, the model has 0", "none")

    def spelled_out(self) -> DBCacheOptions:
        return self.as_dbcache()

    def as_dbcache(self) -> DBCacheOptions:
        """The same behaviour spelled as DBCache."""
        return DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, **self.model_dump(exclude={"type"}))


class DBPruneOptions(MethodOptions):
    """Dual-block prune: every block between Fn and Bn compares its own input and is replaced by its own residual.

    Args:
        Fn_compute_blocks: first blocks, never pruned.
        Bn_compute_blocks: last blocks, never pruned.
        warmup_steps: the first steps of a branch that are always computed.
        max_pruned_steps: steps with at least one pruned block allowed per image and branch; -1 = no limit.
        residual_diff_threshold: relative L1 difference of a block's input below which (strictly) it is pruned.
        enable_dynamic_prune_threshold: raise the threshold with the mean of the step's differences so far.
        max_dynamic_prune_threshold: where the dynamic threshold falls back; None = twice the threshold.
        dynamic_prune_threshold_relax_ratio: factor on that mean.
        residual_cache_update_interval: a computed block refreshes its reference in steps divisible by this.
        non_prune_blocks_ids: block ids (over all blocks, from 0) that are never pruned.
        taylor_order: order of the residual forecast.
    """

    policy = "cache_core.policies.block_prune:BlockPrune"
    thresholds = frozenset({"residual_diff_threshold", "max_dynamic_prune_threshold"})
    structure = frozenset({"Fn_compute_blocks", "Bn_compute_blocks", "non_prune_blocks_ids"})

    type: Literal["DBPrune"] = "DBPrune"
    Fn_compute_blocks: int = Field(default=8, ge=0)
    Bn_compute_blocks: int = Field(default=8, ge=0)
    warmup_steps: int = Field(default=8, ge=0)
    max_pruned_steps: StepLimit = -1
    residual_diff_threshold: Threshold = 0.08
    enable_dynamic_prune_threshold: bool = False
    max_dynamic_prune_threshold: Threshold | None = None
    dynamic_prune_threshold_relax_ratio: float = Field(default=1.25, gt=0.0, allow_inf_nan=False)
    residual_cache_update_interval: int = Field(default=1, ge=1)
    non_prune_blocks_ids: tuple[BlockId, ...] = ()
    taylor_order: TaylorOrder = 0

    @property
    def computed_steps(self) -> int:
        return self.warmup_steps

    def why_nothing_is_saved(self, steps: int, num_blocks: int) -> list[str]:
        return [
            *never_judged(self, steps),
            *(["max_pruned_steps=0 allows no pruned step"] if self.max_pruned_steps == 0 else ()),
            *no_block_between(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks),
        ]

    def check(self, num_blocks: int) -> None:
        check_ends(self.Fn_compute_blocks, self.Bn_compute_blocks, num_blocks)
        outside = [i for i in self.non_prune_blocks_ids if i >= num_blocks]
        if outside:
            reason = f"{outside} name no block: the model has {num_blocks} blocks, ids 0..{num_blocks - 1}"
            inside = [i for i in self.non_prune_blocks_ids if i < num_blocks]
            raise BlockCountError("non_prune_blocks_ids", reason, inside)

    @property
    def threshold_cap(self) -> float:
        """Where the dynamic threshold drops back to ``residual_diff_threshold``."""
        if self.max_dynamic_prune_threshold is None:
            return 2.0 * self.residual_diff_threshold
        return self.max_dynamic_prune_threshold


#: Every method; add new ones here.
CacheOptions = Annotated[
    NoCacheOptions
    | FBCacheOptions
    | DBCacheOptions
    | DBPruneOptions
    | ForecastCacheOptions
    | BudgetCacheOptions
    | ScheduleCacheOptions,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[CacheOptions] = TypeAdapter(CacheOptions)


def parse_options(value: object) -> CacheOptions:
    """Options from a dict with a ``type`` field, or from an options object.

    Raises:
        pydantic.ValidationError: unknown method or field, or a value out of range; names the field and the range.
    """
    return _ADAPTER.validate_python(value)


def check_block_count(options: MethodOptions, num_blocks: int) -> None:
    """Check options against a model with ``num_blocks`` transformer blocks.

    Raises:
        BlockCountError: Fn + Bn exceeds the blocks, or an id names a block that does not exist.
    """
    options.check(num_blocks)


def method_names() -> list[str]:
    """The legal values of ``type``."""
    return list(_models())


def option_names(cache_type: CacheType | str) -> list[str]:
    """The options of a method, without its ``type``."""
    return [name for name in _models()[str(cache_type)].model_fields if name != "type"]


def _models() -> dict[str, type[MethodOptions]]:
    return {model.model_fields["type"].default: model for model in get_args(get_args(CacheOptions)[0])}
