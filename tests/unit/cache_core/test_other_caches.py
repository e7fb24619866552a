"""Another cache on the same transformer is named, whoever came first."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType, SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, HookRegistry, ModelHook, apply_first_block_cache

from cache_core import (
    AnotherCacheError,
    FBCacheOptions,
    NoCacheOptions,
    apply_cache_on_pipe,
    cache_session,
    remove_cache,
)
from cache_core.other_caches import check_no_other_cache
from tests.helpers.flux_pipe import draw, load
from tests.helpers.tiny_flux import tiny_flux
from tests.helpers.wrappers import WRAPPERS

CONFIGS = {
    "FirstBlockCache": FirstBlockCacheConfig(threshold=0.5),
    "MagCache": diffusers.MagCacheConfig(mag_ratios=torch.ones(6), num_inference_steps=6),
    "PyramidAttentionBroadcast": diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "TaylorSeerCache": diffusers.TaylorSeerCacheConfig(),
    "FasterCache": diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: 500,
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        tensor_format="BCHW",
    ),
    "SeaCache": diffusers.hooks.SeaCacheConfig(),
    "TextKVCache": diffusers.hooks.TextKVCacheConfig(),
}


@pytest.fixture(params=CONFIGS)
def other(request: pytest.FixtureRequest, pipe: FluxPipeline) -> str:
    pipe.transformer.enable_cache(CONFIGS[request.param])
    return request.param


@pytest.mark.slow
def test_one_of_diffusers_first(pipe: FluxPipeline, other: str):
    with pytest.raises(AnotherCacheError, match=rf"FluxTransformer2DModel.*diffusers' {other}.*disable_cache"):
        apply_cache_on_pipe(pipe, "FBCache")
    with pytest.raises(AnotherCacheError, match=other), cache_session(pipe.transformer, NoCacheOptions()):
        pass
    pipe.transformer.disable_cache()
    apply_cache_on_pipe(pipe, "FBCache")
    draw(pipe)


def test_one_of_diffusers_later(pipe: FluxPipeline):
    apply_cache_on_pipe(pipe, "FBCache")
    expected = draw(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(AnotherCacheError, match="FirstBlockCache"):
        draw(pipe)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe), expected)


def test_hooks_put_on_by_hand(pipe: FluxPipeline):
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(AnotherCacheError, match=r"FirstBlockCache \(a hook on transformer_blocks\.0\)"):
        apply_cache_on_pipe(pipe, "FBCache")


@pytest.mark.parametrize("theirs_first", [True, False])
def test_paraattentions(pipe: FluxPipeline, theirs_first: bool):
    from para_attn.first_block_cache.diffusers_adapters.flux import apply_cache_on_transformer

    if theirs_first:
        apply_cache_on_transformer(pipe.transformer)
        with pytest.raises(AnotherCacheError, match="ParaAttention's first-block cache"):
            apply_cache_on_pipe(pipe, "FBCache")
    else:
        apply_cache_on_pipe(pipe, "FBCache")
        apply_cache_on_transformer(pipe.transformer)
        with pytest.raises(AnotherCacheError, match="ParaAttention's first-block cache"):
            draw(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("inner", [None, *WRAPPERS])
@pytest.mark.parametrize("outer", WRAPPERS)
def test_paraattentions_below_other_wrappers(flux: FluxTransformer2DModel, inner: str | None, outer: str):
    """Offloading, and a patch of one's own: the cache below them is as bad."""
    from para_attn.first_block_cache.diffusers_adapters.flux import apply_cache_on_transformer

    apply_cache_on_transformer(flux)
    for wrapper in filter(None, (inner, outer)):
        WRAPPERS[wrapper](flux)
    with pytest.raises(AnotherCacheError, match="ParaAttention's first-block"), cache_session(flux, FBCacheOptions()):
        pass


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_no_cache(flux: FluxTransformer2DModel, wrapper: str):
    WRAPPERS[wrapper](flux)
    with cache_session(flux, FBCacheOptions()):
        pass


def test_a_wrapper_that_leads_to_another_transformer_too(flux: FluxTransformer2DModel):
    """A cache there is none here."""
    from para_attn.first_block_cache.diffusers_adapters.flux import apply_cache_on_transformer

    other = tiny_flux()
    apply_cache_on_transformer(other)
    own, others = flux.forward, other.forward
    flux.forward = lambda *args, **kwargs: own(*args, **kwargs) or others(*args, **kwargs)
    check_no_other_cache(flux)


def test_a_cache_that_diffusers_has_not_yet(flux: FluxTransformer2DModel):
    flux._cache_config = SimpleNamespace()
    with pytest.raises(AnotherCacheError, match=r"diffusers' own \(SimpleNamespace\).*disable_cache"):
        check_no_other_cache(flux)


@pytest.mark.parametrize("left", ["_is_cached", "_context_manager"])
def test_half_of_cache_dits_marks_are_somebody_elses(flux: FluxTransformer2DModel, left: str):
    setattr(flux, left, True)
    check_no_other_cache(flux)
    flux._is_cached = flux._context_manager = True
    with pytest.raises(AnotherCacheError, match=r"cache-dit's.*cache_dit\.disable_cache"):
        check_no_other_cache(flux)


def test_the_other_way_of_splitting_is_no_cache(flux: FluxTransformer2DModel):
    """ParaAttention's context parallelism wraps the forward, too: known by the file of the function."""

    def wrapped(*args: object, **kwargs: object) -> object:
        return None

    for package, is_cache in (("context_parallel", False), ("first_block_cache", True)):
        name = f"para_attn.{package}.diffusers_adapters.flux"
        flux.forward = FunctionType(wrapped.__code__, {"__name__": name}).__get__(flux)
        with pytest.raises(AnotherCacheError) if is_cache else nullcontext():
            check_no_other_cache(flux)


def test_a_hook_of_ones_own_in_a_file_of_such_a_name_is_no_cache(flux: FluxTransformer2DModel):
    hook = type("Hook", (ModelHook,), {"__module__": "mine.first_block_cache"})()
    HookRegistry.check_if_exists_or_initialize(flux).register_hook(hook, "mine")
    check_no_other_cache(flux)


def test_a_removed_cache_of_ours_is_none(pipe: FluxPipeline):
    remove_cache(apply_cache_on_pipe(pipe, "FBCache"))
    with cache_session(pipe.transformer, FBCacheOptions()):
        draw(pipe)


@pytest.mark.slow
def test_cache_dits(folder: Path):
    """In a process of its own: cache-dit patches classes."""
    import subprocess

    code = f"""
import cache_dit
from cache_core import AnotherCacheError, FBCacheOptions, apply_cache_on_pipe, cache_session
from tests.helpers.flux_pipe import draw, load
pipe = load({str(folder)!r})
with cache_session(pipe.transformer, FBCacheOptions()):
    draw(pipe)
cache_dit.enable_cache(pipe.transformer, cache_config=cache_dit.DBCacheConfig(num_inference_steps=6))
session = cache_session(pipe.transformer, FBCacheOptions())
for call in (lambda: apply_cache_on_pipe(pipe, "FBCache"), session.__enter__):
    try:
        call()
    except AnotherCacheError as error:
        assert "cache-dit" in str(error), error
    else:
        raise AssertionError("not noticed")
cache_dit.disable_cache(pipe.transformer)
apply_cache_on_pipe(pipe, "FBCache")
draw(pipe)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_load_is_used(folder: Path):
    """The fixture's pipelines share nothing: a cache on one is none on another."""
    first, second = load(folder), load(folder)
    first.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    apply_cache_on_pipe(second, "FBCache")
