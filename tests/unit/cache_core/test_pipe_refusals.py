"""What a user of a cached pipeline may get wrong: errors that name it, and a pipeline that is as it was before."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline

from cache_core import (
    DBCacheOptions,
    NoCacheOptions,
    UnsupportedModelError,
    apply_cache_on_pipe,
    cache_reports,
    cache_session,
    remove_cache,
)
from cache_core.hooks import attachment_of
from tests.helpers.flux_pipe import DBCACHE, draw, load


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cache_type": "TeaCache"},
            r"cache_type='TeaCache' is unknown; legal values: none, FBCache, DBCache, DBPrune",
        ),
        ({"residual_diff_threshold": -0.1}, r"residual_diff_threshold\n.*greater than or equal to 0"),
        ({"residual_diff_threshold": float("nan")}, r"residual_diff_threshold\n.*finite number"),
        ({"Fn_compute_blocks": 0}, r"Fn_compute_blocks\n.*greater than or equal to 1"),
        ({"Fn_compute_blocks": 7}, r"Fn_compute_blocks: 7 is more than the model's 6 blocks"),
        ({"Fn_compute_blocks": 4, "Bn_compute_blocks": 3}, r"Bn_compute_blocks: .*4 \+ 3 = 7 is more than .* 6 blocks"),
        ({"warmup_steps": -2}, r"warmup_steps\n.*greater than or equal to 0"),
        ({"max_cached_steps": -2}, r"max_cached_steps\n.*greater than or equal to -1"),
        ({"taylor_order": 3}, r"taylor_order\n.*less than or equal to 2"),
        (
            {"Bn_compute_blocks": 2, "Bn_compute_blocks_ids": [2]},
            r"Bn_compute_blocks_ids\n.*\[2\] lie outside the Bn group.*0\.\.1",
        ),
        ({"warmup": 2}, r"DBCache has no option 'warmup' \(did you mean warmup_steps\?\); it has Fn_compute_blocks, "),
        ({"cache_type": "none"}, r"none has no option 'Fn_compute_blocks'; it has none"),
        ({"downsample_factor": 4}, r"downsample_factor=4 is not supported: .*leave it at 1"),
        ({"enable_alter_cache": True}, r"enable_alter_cache=True is not supported: cond and uncond are kept apart"),
        ({"type": "DBPrune"}, r"type='DBPrune' is not supported: the method is given as cache_type"),
        ({"cache_type": "DBPrune", "non_prune_blocks_ids": [1, 6]}, r"non_prune_blocks_ids: \[6\] name no block.*0..5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named_with_its_range_and_changes_nothing(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        apply_cache_on_pipe(pipe, **{"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, **options})
    assert type(pipe) is FluxPipeline
    assert attachment_of(pipe.transformer) is None


def test_published_options_that_change_nothing_are_accepted(pipe):
    apply_cache_on_pipe(
        pipe,
        **DBCACHE,
        max_Fn_compute_blocks=16,
        max_Bn_compute_blocks=16,
        downsample_factor=1,
        enable_alter_cache=False,
        l1_hidden_states_diff_threshold=None,
        important_condition_threshold=0.0,
        num_inference_steps=28,
    )
    assert pipe._raycache.options == DBCacheOptions(**DBCACHE)


def test_a_copied_transformer_says_that_it_is_one(folder, pipe):
    apply_cache_on_pipe(pipe, **DBCACHE)
    pipe_of_copy = FluxPipeline.from_pipe(pipe, transformer=copy.deepcopy(pipe.transformer))
    with pytest.raises(RuntimeError, match=r"this transformer is a copy.*remove_cache\(\) before copying"):
        draw(pipe_of_copy)
    remove_cache(pipe)
    assert torch.equal(
        draw(FluxPipeline.from_pipe(pipe, transformer=copy.deepcopy(pipe.transformer))), draw(load(folder))
    )


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_cached_pipeline_says_how_it_is_copied(pipe, duplicate):
    apply_cache_on_pipe(pipe, **DBCACHE)
    with pytest.raises(TypeError, match=r"call remove_cache\(pipe\) first"):
        duplicate(pipe)
    duplicate(remove_cache(pipe))


@pytest.mark.parametrize("where", ["", "single_transformer_blocks.1"])
def test_removing_refuses_when_somebody_wrapped_a_forward_since(pipe, where):
    apply_cache_on_pipe(pipe, **DBCACHE)
    module = pipe.transformer.get_submodule(where)
    wrapped = module.forward

    def offloading(*args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    module.forward = offloading
    with pytest.raises(
        RuntimeError, match=r"cannot detach the cache from \w+: its forward was wrapped by '.*offloading'"
    ):
        remove_cache(pipe)
    draw(pipe)
    assert cache_reports(pipe)["transformer"].method == "DBCache", "still cached, nothing was taken off"
    module.forward = wrapped
    assert type(remove_cache(pipe)) is FluxPipeline


def test_a_session_of_ones_own_inside_a_cached_pipeline_is_refused(pipe):
    apply_cache_on_pipe(pipe, **DBCACHE)
    with (
        cache_session(pipe.transformer, NoCacheOptions()),
        pytest.raises(RuntimeError, match="a cache session is already open on this transformer"),
    ):
        draw(pipe)


def test_a_pipeline_without_transformer_is_refused():
    class Unet(DiffusionPipeline):
        pass

    with pytest.raises(ValueError, match="Unet has no transformer to cache"):
        apply_cache_on_pipe(Unet())


def test_a_second_transformer_that_does_not_work_leaves_the_first_alone(pipe):
    pipe.transformer_2 = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)
    with pytest.raises(UnsupportedModelError, match="AutoencoderKL"):
        apply_cache_on_pipe(pipe, **DBCACHE)
    assert attachment_of(pipe.transformer) is None
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_a_transformer_compiled_in_a_way_that_is_hidden_is_left_alone(pipe):
    pipe.transformer._compiled_call_impl = pipe.transformer._call_impl
    with pytest.raises(RuntimeError, match=r"in a way that the cache does not find"):
        apply_cache_on_pipe(pipe, **DBCACHE)
    assert attachment_of(pipe.transformer) is None
