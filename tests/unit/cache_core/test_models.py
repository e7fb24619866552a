"""Every supported transformer: untouched when nothing is reused, exact when it is, and each image for itself."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from cache_core import (
    CacheReport,
    DBCacheOptions,
    DBPruneOptions,
    FBCacheOptions,
    ForecastCacheOptions,
    NoCacheOptions,
    cache_session,
)
from cache_core.block_specs import BLOCKS
from cache_core.blocks import find_blocks
from tests.helpers.conditioned_images import Images
from tests.helpers.tiny_transformers import TINY, call, shared

STILL, RESTLESS = 0.01, 1.0
THRESHOLD = 0.2

every_model = pytest.mark.parametrize("name", TINY)


def draw(
    model: torch.nn.Module, name: str, options: Any, seeds: tuple[int, ...], drifts: tuple[float, ...], steps: int = 3
) -> tuple[list[torch.Tensor], CacheReport]:
    with torch.no_grad(), cache_session(model, options) as report:
        outputs = [call(model, name, Images(seeds, drifts, step)) for step in range(steps)]
    return outputs, report


def bare(
    model: torch.nn.Module, name: str, seeds: tuple[int, ...], drifts: tuple[float, ...], steps: int = 3
) -> list[torch.Tensor]:
    with torch.no_grad():
        return [call(model, name, Images(seeds, drifts, step)) for step in range(steps)]


@functools.cache
def expected_of(name: str, seeds: tuple[int, ...], drifts: tuple[float, ...]) -> list[torch.Tensor]:
    """As :func:`bare`, drawn once for all options."""
    return bare(shared(name), name, seeds, drifts)


def gap(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference, relative to the size of the values."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


NOTHING_REUSED = [
    NoCacheOptions(),
    FBCacheOptions(residual_diff_threshold=0.0, warmup_steps=0),
    DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=9),
    DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=0, warmup_steps=2, residual_diff_threshold=1e-9),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # Quick for each class once; other forms and methods take most of a minute.
        pytest.param(
            name,
            options,
            id=f"{name}-{options.type}",
            marks=() if "+" not in name and options.type == "DBCache" else pytest.mark.slow,
        )
        for name in TINY
        for options in NOTHING_REUSED
    ],
)
def test_nothing_reused_means_nothing_changed(name, options):
    model, seeds, drifts = shared(name), (1, 2), (STILL, RESTLESS)
    expected = expected_of(name, seeds, drifts)
    outputs, report = draw(model, name, options, seeds, drifts)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert report.computed_block_fraction == [1.0, 1.0]
    assert "forward" not in vars(model)
    assert torch.equal(*bare(model, name, seeds, drifts, steps=1), expected[0]), "as it was before the session"


def cuts(blocks: int) -> list[dict[str, int]]:
    """Every way to part the blocks into Fn, middle and Bn."""
    return [
        {"Fn_compute_blocks": first, "Bn_compute_blocks": last}
        for first in range(1, blocks + 1)
        for last in range(blocks - first + 1)
    ]


@pytest.mark.slow
@every_model
def test_a_still_image_comes_out_of_the_cache_as_it_was_computed(name):
    """Equal inputs at every step: what is reused must be what would have been computed, wherever the model is cut."""
    blocks = len(find_blocks(shared(name)))
    expected = bare(shared(name), name, (1,), (0.0,), steps=2)
    for cut in cuts(blocks):
        ids = (0,) if cut["Bn_compute_blocks"] > 1 else ()
        options = DBCacheOptions(
            **cut, Bn_compute_blocks_ids=ids, warmup_steps=1, residual_diff_threshold=1e-6, taylor_order=0
        )
        outputs, report = draw(shared(name), name, options, (1,), (0.0,), steps=2)
        assert report.cached_steps == [1], cut
        assert gap(outputs, expected) < 1e-5, cut
        first, last = cut.values()
        outputs, report = draw(
            shared(name),
            name,
            DBPruneOptions(**cut, warmup_steps=1, residual_diff_threshold=1e-6, residual_cache_update_interval=1),
            (1,),
            (0.0,),
            steps=2,
        )
        assert report.steps[1].images[0].pruned_blocks == list(range(first, blocks - last)), cut
        assert gap(outputs, expected) < 1e-5, cut


METHODS = [
    DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=1, residual_diff_threshold=THRESHOLD),
    DBCacheOptions(
        Fn_compute_blocks=1,
        Bn_compute_blocks=2,
        Bn_compute_blocks_ids=(1,),
        warmup_steps=1,
        residual_diff_threshold=THRESHOLD,
        non_compute_blocks_diff_threshold=THRESHOLD,
    ),
    FBCacheOptions(warmup_steps=2, residual_diff_threshold=THRESHOLD, taylor_order=1),
    DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=1, warmup_steps=1, residual_diff_threshold=THRESHOLD),
    ForecastCacheOptions(Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=THRESHOLD),
]
METHOD_NAMES = ["DBCache", "DBCache-partial-Bn", "FBCache-taylor", "DBPrune", "ForecastCache"]


@pytest.mark.slow
@every_model
@pytest.mark.parametrize("options", METHODS, ids=METHOD_NAMES)
def test_images_that_disagree_equal_themselves_alone(name, options):
    """The restless image is computed in a sub-batch, so every batched argument must have been cut for it."""
    model, seeds, drifts = shared(name), (1, 2), (STILL, RESTLESS)
    outputs, report = draw(model, name, options, seeds, drifts)
    assert [bool(d.cached or d.pruned_blocks) for d in report.steps[-1].images] == [True, False]
    for k in range(2):
        alone, own = draw(model, name, options, seeds[k : k + 1], drifts[k : k + 1])
        for together, single in zip(report.steps, own.steps, strict=True):
            ours, theirs = together.images[k], single.images[0]
            assert (ours.cached, ours.reason, ours.pruned_blocks) == (
                theirs.cached,
                theirs.reason,
                theirs.pruned_blocks,
            )
        assert gap([output[k : k + 1] for output in outputs], alone) < 1e-4
    plain = expected_of(name, seeds, drifts)
    assert gap([o[1:2] for o in outputs], [p[1:2] for p in plain]) < 1e-4
    assert not torch.equal(outputs[-1][0], plain[-1][0])


@pytest.mark.slow
@every_model
def test_the_table_names_every_batched_argument(name, monkeypatch):
    """Seven images, and no other size divisible by seven: what has seven rows must stand in the table."""
    model, seen = shared(name), set()
    for block in find_blocks(model):
        forward = block.module.forward

        def spy(*args: Any, _block=block, _forward=forward, **kwargs: Any) -> Any:
            named = dict(zip(_block.parameters, args, strict=False)) | kwargs
            assert not any(seven(value) for value in args[len(_block.parameters) :])
            turned = _block.spec.tokens_first
            assert seven(named[_block.hidden_argument], int(_block.hidden_argument in turned))
            streams = {_block.hidden_argument, _block.encoder_argument}
            for key, value in named.items():
                if key in turned:
                    assert seven(value, 1), (_block.name, key)
                    seen.add((type(_block.module).__name__, key))
                elif isinstance(value, dict):
                    batched = {k for k, item in value.items() if seven(item)}
                    assert batched <= set(_block.spec.nested.get(key, ())), (_block.name, key, batched)
                elif seven(value) and key not in streams:
                    assert key in _block.spec.batched or key in ("args", "kwargs"), (_block.name, key)
                    seen.add((type(_block.module).__name__, key))
            return _forward(*args, **kwargs)

        monkeypatch.setattr(block.module, "forward", spy)
    bare(model, name, tuple(range(7)), (STILL,) * 7, steps=1)
    assert seen


def seven(value: Any, dim: int = 0) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim > dim and value.shape[dim] % 7 == 0
    return isinstance(value, tuple | list) and any(seven(item, dim) for item in value)


def test_the_table_names_arguments_that_exist_of_blocks_that_are_tested():
    described = set()
    for block in (block for name in TINY for block in find_blocks(shared(name))):
        spec = block.spec
        named = {*spec.batched, *spec.nested, *spec.with_shared, *spec.tokens_first, *spec.without}
        streams = {block.hidden_argument, *([] if block.encoder_result is None else [block.encoder_argument])}
        assert named | streams <= set(block.parameters), type(block.module).__name__
        described.add(type(block.module).__name__)
    assert described == set(BLOCKS)


@pytest.mark.parametrize("name", ["SD3Transformer2DModel", "ZImageTransformer2DModel"])
def test_without_cache_context_the_branch_is_default(name):
    assert not hasattr(shared(name), "cache_context")
    _, report = draw(shared(name), name, NoCacheOptions(), (1,), (STILL,), steps=2)
    assert [(record.step, record.branch) for record in report.steps] == [(0, "default"), (1, "default")]


def test_branches_have_counters_and_differences_of_their_own():
    name = "FluxTransformer2DModel"
    model, options = shared(name), FBCacheOptions(warmup_steps=1, residual_diff_threshold=THRESHOLD)
    with torch.no_grad(), cache_session(model, options) as report:
        for step in range(4):
            for branch, seed, drift in (("cond", 1, STILL), ("uncond", 2, RESTLESS)):
                with model.cache_context(branch):
                    call(model, name, Images((seed,), (drift,), step))
    _, cond = draw(model, name, options, (1,), (STILL,), steps=4)
    _, uncond = draw(model, name, options, (2,), (RESTLESS,), steps=4)
    for branch, alone in (("cond", cond), ("uncond", uncond)):
        own = [record for record in report.steps if record.branch == branch]
        assert [(record.step, record.images) for record in own] == [(r.step, r.images) for r in alone.steps]
    assert cond.cached_steps == [3]
    assert uncond.cached_steps == [0]
