"""The published README works with another import: every example is run, and the image drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cache_core import cache_reports, cache_session, remove_cache
from cache_core.cache_factory import CacheType, apply_cache_on_pipe
from raycache.demo.noise import build_noise_model
from tests.helpers.flux_pipe import draw
from tests.helpers.published_readme import APPLIED, COMPILED, PIECES, run_snippet

API = {"apply_cache_on_pipe": apply_cache_on_pipe, "CacheType": CacheType}


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    """As many blocks as F8B16 needs."""
    return build_noise_model(tmp_path_factory.mktemp("deep") / "model", layers=10, single_layers=18)


def _check(pipe: Any, wanted: dict[str, Any]) -> None:
    options = pipe._raycache.options.model_dump()
    assert {name: options[name] for name in wanted} == wanted
    draw(pipe, num_inference_steps=12)
    report = cache_reports(pipe)["transformer"]
    assert len(report.steps) == 12
    assert report.method == wanted["type"]
    warmup = options["warmup_steps"]
    reasons = [step.images[0].reason for step in report.steps]
    assert reasons[:warmup] == ["warmup"] * warmup
    assert set(reasons[warmup or 1 :]) <= {"below", "threshold", "limit"}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLIED)
def test_a_whole_example(name, deep):
    source, wanted = APPLIED[name]
    _check(run_snippet(source, deep)["pipe"], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECES)
def test_options_that_are_only_named(name, deep, caplog):
    source, wanted = PIECES[name]
    pipe = run_snippet(APPLIED["DBCache, default"][0], deep)["pipe"]
    apply_cache_on_pipe(remove_cache(pipe), **run_snippet(source, deep, **API)["cache_options"])
    assert "no cache_type given" in caplog.text
    _check(pipe, wanted)


@pytest.mark.slow
def test_compiled_after_the_cache(folder, monkeypatch):
    seen = []

    def compiler(graph, inputs):
        seen.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: real(module, backend=compiler))
    config: Any = torch._dynamo.config  # its own patch: monkeypatch would delete what it does not find in the module
    limits = {name: getattr(config, name) for name in ("recompile_limit", "accumulated_recompile_limit")}
    with config.patch(limits):
        pipe = run_snippet(APPLIED["FBCache, default"][0], folder)["pipe"]
        source = COMPILED[0].replace("default_options(CacheType.DBPrune)", "default_options(CacheType.FBCache)")
        for snippet in (*COMPILED[1:], source):  # the noise model has fewer blocks than F8B8 of DBPrune
            run_snippet(snippet, folder, pipe=pipe, **API)
        assert torch._dynamo.config.recompile_limit == 96
        assert torch._dynamo.config.accumulated_recompile_limit == 2048
        draw(pipe)
        assert len(cache_reports(pipe)["transformer"].steps) == 6
        assert seen, "the blocks ran compiled"
    assert {name: getattr(config, name) for name in limits} == limits


def test_default_options_print_as_published():
    printed = {
        "NONE": "{'cache_type': <CacheType.NONE: 'NONE'>}",
        "FBCache": "{'cache_type': <CacheType.FBCache: 'First_Block_Cache'>, 'residual_diff_threshold': 0.08, "
        "'warmup_steps': 8, 'max_cached_steps': 8}",
        "DBCache": "{'cache_type': <CacheType.DBCache: 'Dual_Block_Cache'>, 'residual_diff_threshold': 0.12, "
        "'warmup_steps': 8, 'max_cached_steps': -1, 'Fn_compute_blocks': 8, 'Bn_compute_blocks': 8, "
        "'max_Fn_compute_blocks': 16, 'max_Bn_compute_blocks': 16, 'Fn_compute_blocks_ids': [], "
        "'Bn_compute_blocks_ids': []}",
        "DBPrune": "{'cache_type': <CacheType.DBPrune: 'Dynamic_Block_Prune'>, 'residual_diff_threshold': 0.08, "
        "'Fn_compute_blocks': 8, 'Bn_compute_blocks': 8, 'warmup_steps': 8, 'max_pruned_steps': -1}",
    }
    for name, text in printed.items():
        assert str(CacheType.default_options(CacheType[name])) == text
        assert str(CacheType.default_options(name)) == text
    CacheType.default_options("DBCache")["Bn_compute_blocks_ids"].append(3)
    assert CacheType.default_options("DBCache")["Bn_compute_blocks_ids"] == []


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("NONE", ["none", "NONE", "no", "no_cache", "nocache", "none_cache", None]),
        ("FBCache", ["fb", "fb_cache", "fbcache", "FBCache", "first_block_cache", "First_Block_Cache"]),
        ("DBCache", ["db", "db_cache", "dbcache", "dual_block_cache", "Dual_Block_Cache"]),
        ("DBPrune", ["dbp", "db_prune", "dbprune", "dynamic_block_prune", "Dynamic_Block_Prune"]),
    ],
)
def test_the_published_spellings_of_a_method(name, spellings):
    for spelling in [*spellings, CacheType[name]]:
        assert CacheType.type(spelling) is CacheType.cache_type(spelling) is CacheType[name]
    assert CacheType(name if name != "NONE" else "none") is CacheType[name]


@pytest.mark.parametrize(
    ("cache_type", "given", "wanted"),
    [
        ("DBCache", {}, {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_cached_steps": -1}),
        ("DBCache", {"Bn_compute_blocks_ids": [0, 3]}, {"Bn_compute_blocks": 4}),
        ("FBCache", {}, {"max_cached_steps": -1}),
        ("DBPrune", {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}, {"max_pruned_steps": -1}),
    ],
)
def test_options_left_out_are_as_published(pipe, cache_type, given, wanted):
    apply_cache_on_pipe(pipe, cache_type=cache_type, **given)
    options = pipe._raycache.options.model_dump()
    wanted = {"type": cache_type, "residual_diff_threshold": 0.05, "warmup_steps": 0, **wanted}
    assert {name: options[name] for name in wanted} == wanted


def test_no_warm_up_may_be_written_as_minus_one(pipe):
    """Published as DBPrune's default."""
    apply_cache_on_pipe(pipe, cache_type="DBPrune", warmup_steps=-1, Fn_compute_blocks=1, Bn_compute_blocks=1,
                        residual_diff_threshold=9.0)  # fmt: skip
    draw(pipe)
    first, second, *_ = cache_reports(pipe)["transformer"].steps
    assert first.images[0].pruned_blocks == []
    assert second.images[0].pruned_blocks == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({"enable_taylorseer": True}, 2),
        ({"enable_taylorseer": True, "taylorseer_kwargs": {"n_derivatives": 1, "skip_interval_steps": 1}}, 1),
        ({"enable_taylorseer": True, "enable_encoder_taylorseer": False, "taylorseer_kwargs": {}}, 2),
        ({"enable_taylorseer": True, "taylorseer_order": 1, "enable_separate_cfg": True}, 1),
        ({"enable_taylorseer": False, "taylorseer_cache_type": "hidden_states"}, 0),
        ({"enable_taylorseer": True, "taylorseer_kwargs": {"n_derivatives": 1}, "taylor_order": 1}, 1),
        ({"do_separate_cfg": True, "shallow_patch": False, "taylorseer_kwargs": {"n_derivatives": 2}}, 0),
    ],
)
def test_taylorseer_becomes_the_order_of_the_forecast(pipe, given, order):
    apply_cache_on_pipe(pipe, cache_type="FBCache", **given)
    assert pipe._raycache.options.taylor_order == order


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"taylorseer_kwargs": {"n_derivatives": 3}}, r"n_derivatives=3 is not supported: .* order 2; nearest .*: 2"),
        ({"taylorseer_kwargs": {"order": 2}}, r"taylorseer_kwargs has no 'order'; it has n_derivatives"),
        ({"taylorseer_cache_type": "hidden_states"}, r"taylorseer_cache_type='hidden_states' is not supported"),
        ({"taylor_order": 1}, r"n_derivatives=2 contradicts taylor_order=1"),
        ({"enable_taylorseer": False, "enable_encoder_taylorseer": True}, r"enable_encoder_taylorseer=True without"),
        ({"shallow_patch": True}, r"shallow_patch=True is not supported: .*leave it at False"),
        ({"cfg_diff_compute_separate": False}, r"cfg_diff_compute_separate=False is not supported"),
    ],
)
def test_what_would_draw_another_image_is_refused(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        apply_cache_on_pipe(pipe, cache_type="FBCache", **{"enable_taylorseer": True, **given})


def test_the_wrong_object_is_answered_with_the_right_one(pipe):
    for function in (apply_cache_on_pipe, remove_cache, cache_reports):
        name = function.__name__
        with pytest.raises(
            TypeError, match=rf"{name} takes the pipeline, not its FluxTransf.*: {name}\(pipe\)\. .*cache_s"
        ):
            function(pipe.transformer)
        with pytest.raises(TypeError, match=rf"{name} takes a diffusers pipeline, not the class FluxPipeline: load it"):
            function(type(pipe))
        with pytest.raises(TypeError, match=rf"{name} takes a diffusers pipeline, not a str: load it"):
            function("black-forest-labs/FLUX.1-dev")
    with pytest.raises(TypeError, match=r"takes a transformer, not a FluxPipeline: cache_session\(pipe.transformer"):
        cache_session(pipe, {"type": "none"}).__enter__()
