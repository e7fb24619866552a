"""Bad options: an error that names the field and what would be legal, before anything is touched."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from cache_core import (
    BlockCountError,
    CacheType,
    DBCacheOptions,
    DBPruneOptions,
    FBCacheOptions,
    cache_session,
    check_block_count,
    parse_options,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("options", "field", "legal"),
    [
        ({"type": "DBCache", "Fn_compute_blocks": 0}, "Fn_compute_blocks", "greater than or equal to 1"),
        ({"type": "DBCache", "Bn_compute_blocks": -1}, "Bn_compute_blocks", "greater than or equal to 0"),
        ({"type": "DBCache", "warmup_steps": -1}, "warmup_steps", "greater than or equal to 0"),
        ({"type": "DBCache", "max_cached_steps": -2}, "max_cached_steps", "greater than or equal to -1"),
        (
            {"type": "DBCache", "max_continuous_cached_steps": -2},
            "max_continuous_cached_steps",
            "greater than or equal to -1",
        ),
        ({"type": "DBCache", "residual_diff_threshold": -0.1}, "residual_diff_threshold", "greater than or equal to 0"),
        ({"type": "DBCache", "residual_diff_threshold": NAN}, "residual_diff_threshold", "finite number"),
        ({"type": "DBCache", "residual_diff_threshold": INF}, "residual_diff_threshold", "finite number"),
        (
            {"type": "DBCache", "non_compute_blocks_diff_threshold": NAN},
            "non_compute_blocks_diff_threshold",
            "finite number",
        ),
        ({"type": "DBCache", "Bn_compute_blocks_ids": (-1,)}, "Bn_compute_blocks_ids", "greater than or equal to 0"),
        ({"type": "DBCache", "Bn_compute_blocks": 4, "Bn_compute_blocks_ids": (1, 4)}, "Bn_compute_blocks_ids", "0..3"),
        (
            {"type": "DBCache", "Bn_compute_blocks": 0, "Bn_compute_blocks_ids": (0,)},
            "Bn_compute_blocks_ids",
            "only the empty list",
        ),
        ({"type": "DBCache", "taylor_order": 3}, "taylor_order", "less than or equal to 2"),
        ({"type": "FBCache", "max_cached_steps": -2}, "max_cached_steps", "greater than or equal to -1"),
        ({"type": "FBCache", "residual_diff_threshold": NAN}, "residual_diff_threshold", "finite number"),
        ({"type": "DBPrune", "Fn_compute_blocks": -1}, "Fn_compute_blocks", "greater than or equal to 0"),
        ({"type": "DBPrune", "max_pruned_steps": -2}, "max_pruned_steps", "greater than or equal to -1"),
        ({"type": "DBPrune", "residual_diff_threshold": NAN}, "residual_diff_threshold", "finite number"),
        ({"type": "DBPrune", "max_dynamic_prune_threshold": NAN}, "max_dynamic_prune_threshold", "finite number"),
        (
            {"type": "DBPrune", "dynamic_prune_threshold_relax_ratio": 0.0},
            "dynamic_prune_threshold_relax_ratio",
            "greater than 0",
        ),
        (
            {"type": "DBPrune", "dynamic_prune_threshold_relax_ratio": INF},
            "dynamic_prune_threshold_relax_ratio",
            "finite number",
        ),
        (
            {"type": "DBPrune", "residual_cache_update_interval": 0},
            "residual_cache_update_interval",
            "greater than or equal to 1",
        ),
        ({"type": "DBPrune", "non_prune_blocks_ids": (-3,)}, "non_prune_blocks_ids", "greater than or equal to 0"),
        ({"type": "DBPrune", "max_cached_steps": 3}, "max_cached_steps", "not permitted"),
        ({"type": "DBCache", "residual_diff_treshold": 0.1}, "residual_diff_treshold", "not permitted"),
        ({"type": "DBcache"}, "type", "'none', 'FBCache', 'DBCache', 'DBPrune'"),
        ({}, "type", "discriminator"),
        ({"type": "none", "warmup_steps": 3}, "warmup_steps", "not permitted"),
    ],
)
def test_names_the_field_and_the_range(options, field, legal):
    with pytest.raises(ValidationError) as caught:
        parse_options(options)
    [error] = caught.value.errors()
    if field == "type":  # pydantic puts an unknown tag at no location
        assert "'type'" in error["msg"], error
    else:
        assert field in error["loc"], error
    assert legal in error["msg"], error


@pytest.mark.parametrize(
    ("options", "field", "words", "nearest"),
    [
        (
            DBCacheOptions(Fn_compute_blocks=5, Bn_compute_blocks=4),
            "Bn_compute_blocks", "5 + 4 = 9 is more than the model's 8 blocks", 3,
        ),
        (DBCacheOptions(Fn_compute_blocks=9, Bn_compute_blocks=0), "Fn_compute_blocks", "9 is more than", 8),
        (
            DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=9),
            "Bn_compute_blocks", "0 + 9 = 9 is more than the model's 8 blocks", 8,
        ),
        (
            DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, non_prune_blocks_ids=(2, 8)),
            "non_prune_blocks_ids", "[8] name no block: the model has 8 blocks, ids 0..7", [2],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused_before_a_hook_is_set(flux, options, field, words, nearest):
    with pytest.raises(BlockCountError) as caught, cache_session(flux, options):
        pass
    assert caught.value.field == field
    assert field in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.nearest == nearest
    assert not hasattr(flux, "_diffusers_hook")
    assert "forward" not in flux.transformer_blocks[0].__dict__


def test_what_just_fits_is_taken(flux):
    check_block_count(DBCacheOptions(Fn_compute_blocks=8, Bn_compute_blocks=0), 8)
    check_block_count(DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=7), 8)
    check_block_count(DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=8, non_prune_blocks_ids=(7,)), 8)
    check_block_count(FBCacheOptions(), 1)


def test_an_unknown_method_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="'TeaCache' is unknown; legal values: none, FBCache, DBCache, DBPrune"):
        CacheType.default_options("TeaCache")


def test_published_defaults():
    assert DBCacheOptions().model_dump() == {
        "type": "DBCache", "Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "warmup_steps": 8, "max_cached_steps": -1,
        "max_continuous_cached_steps": -1, "residual_diff_threshold": 0.12, "Bn_compute_blocks_ids": (),
        "non_compute_blocks_diff_threshold": 0.08, "taylor_order": 0,
    }  # fmt: skip
    assert FBCacheOptions().model_dump() == {
        "type": "FBCache", "warmup_steps": 8, "max_cached_steps": 8, "max_continuous_cached_steps": -1,
        "residual_diff_threshold": 0.08, "taylor_order": 0,
    }  # fmt: skip
    assert DBPruneOptions().model_dump() == {
        "type": "DBPrune", "Fn_compute_blocks": 8, "Bn_compute_blocks": 8, "warmup_steps": 8, "max_pruned_steps": -1,
        "residual_diff_threshold": 0.08, "enable_dynamic_prune_threshold": False, "max_dynamic_prune_threshold": None,
        "dynamic_prune_threshold_relax_ratio": 1.25, "residual_cache_update_interval": 1, "non_prune_blocks_ids": (),
        "taylor_order": 0,
    }  # fmt: skip
    assert CacheType.default_options(CacheType.DBPrune)["cache_type"] is CacheType.DBPrune


def test_options_are_frozen():
    """A session reads them at every step: a change in mid-job would part the ranks."""
    with pytest.raises(ValidationError, match="frozen"):
        DBCacheOptions().residual_diff_threshold = 0.5


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ((0, 16, 4), [0, 4, 8, 12, 15]),
        ((0, 16, 1), []),  # empty means all
        ((0, 16, 0), []),
        ((0, 1, 2), [0]),
        ((0, 9, 8), [0, 8]),
        ((2, 9, 3), [0, 2, 5, 8]),
        ((5, 5, 2), []),
    ],
)
def test_cache_type_range(arguments, ids):
    assert CacheType.range(*arguments) == ids
