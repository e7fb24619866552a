"""Guidance that leaves blocks out (skip-layer) or perturbs attention in one batch (PAG), by diffusers' pipelines."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch

from cache_core import CacheType, apply_cache_on_pipe, cache_reports, cache_session, cache_summary
from tests.helpers.guided_pipes import GUIDED, draw_guided

SD3 = "StableDiffusion3Pipeline"
SKIP = {"skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.9}
EAGER = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 0.2, "warmup_steps": 2}


def pag_pipe():
    parts = GUIDED[SD3][0]().components
    taken = inspect.signature(diffusers.StableDiffusion3PAGPipeline).parameters
    parts = {name: part for name, part in parts.items() if name in taken}
    pipe = diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers="blocks.2")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize("layers", [[2], [0], [3], [0, 1, 2, 3]], ids=["middle", "first", "last", "all"])
def test_none_computes_what_skip_layer_guidance_calls(layers):
    pipe = GUIDED[SD3][0]()
    alone = draw_guided(SD3, pipe, (1, 2), skip_guidance_layers=layers, **SKIP)
    apply_cache_on_pipe(pipe, CacheType.NONE)
    assert torch.equal(draw_guided(SD3, pipe, (1, 2), skip_guidance_layers=layers, **SKIP), alone)
    report = cache_reports(pipe)["transformer"]
    counts = {(record.branch, image.computed_blocks) for record in report.steps for image in record.images}
    assert counts == {("default", 4)} | ({("default#2", 4 - len(layers))} if len(layers) < 4 else set())
    assert len(report.steps) == 8 + 7
    assert "none, 15 steps of 4 blocks" in cache_summary(pipe)


def test_abort_is_seen_where_the_first_block_is_left_out():
    pipe, asked = GUIDED[SD3][0](), []
    with cache_session(pipe.transformer, {"type": "none"}, should_abort=lambda: bool(asked.append(1))):
        draw_guided(SD3, pipe, (1,), skip_guidance_layers=[0], **SKIP)
    assert len(asked) == 8 + 7


def test_a_method_that_remembers_says_what_to_do_and_that_works():
    pipe = GUIDED[SD3][0]()
    apply_cache_on_pipe(pipe, "DBCache", **EAGER)
    for layers, words in (([2], r"blocks\.3 was called where .*\.2 was expected"), ([3], "called 3 of its 4 blocks")):
        with pytest.raises(RuntimeError, match=f"{words}.* guidance and the like need `type: none`"):
            draw_guided(SD3, pipe, (1,), skip_guidance_layers=layers, **SKIP)


def test_none_takes_any_order_and_any_batch():
    model = GUIDED[SD3][0]().transformer
    with cache_session(model, {"type": "none"}) as report, torch.no_grad():
        for batch in (1, 3, 2):
            model(
                hidden_states=torch.ones(batch, 4, 8, 8), timestep=torch.ones(batch),
                encoder_hidden_states=torch.ones(batch, 6, 16), pooled_projections=torch.ones(batch, 16),
                skip_layers=[batch],
            )  # fmt: skip
        first, second, *rest = model.transformer_blocks
        model.transformer_blocks = torch.nn.ModuleList([second, first, *rest])
        model(
            hidden_states=torch.ones(1, 4, 8, 8), timestep=torch.ones(1), pooled_projections=torch.ones(1, 16),
            encoder_hidden_states=torch.ones(1, 6, 16),
        )  # fmt: skip
    assert [len(record.images) for record in report.steps] == [1, 3, 2, 1]
    assert report.steps[-1].images[0].computed_blocks == 4


@pytest.mark.parametrize("guidance", [3.0, 0.0], ids=["three rows an image", "two"])
def test_perturbed_attention_guidance_is_that_of_the_pipeline_alone(guidance):
    pipe = pag_pipe()
    alone = draw_guided(SD3, pipe, (1, 2), pag_scale=3.0, guidance_scale=guidance)
    apply_cache_on_pipe(pipe, CacheType.NONE)
    assert torch.equal(draw_guided(SD3, pipe, (1, 2), pag_scale=3.0, guidance_scale=guidance), alone)


@pytest.mark.parametrize("guidance", [3.0, 0.0], ids=["three rows an image", "two"])
@pytest.mark.parametrize("method", ["DBCache", "DBPrune"])
def test_perturbed_attention_with_a_cache_perturbs_the_right_rows(method, guidance):
    """PAG's processors know rows by their place in the batch: a part of the batch would be another batch to them."""
    pipe, seen = pag_pipe(), []
    block = pipe.transformer.transformer_blocks[2]
    forward = block.forward

    def watched(*args, **kwargs):
        seen.append(kwargs["hidden_states"].shape[0])
        return forward(*args, **kwargs)

    block.forward = watched
    each = [EAGER | {"type": method, "residual_diff_threshold": threshold} for threshold in (1e-6, 0.9)]
    with cache_session(pipe.transformer, each) as report:
        draw_guided(SD3, pipe, (1, 2), pag_scale=3.0, guidance_scale=guidance)
    rows = 6 if guidance else 4
    assert set(seen) == {rows}
    decisions = [[k.computed_blocks for k in record.images] for record in report.steps]
    assert any(len(set(step)) > 1 for step in decisions), "no step with a part of the rows: nothing was tested"
