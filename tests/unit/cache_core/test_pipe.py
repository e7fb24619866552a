"""Plug-and-play on a real FluxPipeline: each call its own session, nothing left behind, no other pipeline touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxImg2ImgPipeline, FluxPipeline, WanPipeline

from cache_core import (
    BlockCountError,
    CacheType,
    JobAborted,
    apply_cache_on_pipe,
    cache_reports,
    cache_summary,
    remove_cache,
)
from cache_core.hooks import attachment_of
from tests.helpers.flux_pipe import DBCACHE, STEPS, draw, load


@pytest.fixture(scope="module")
def uncached(folder) -> torch.Tensor:
    return draw(load(folder))


def report_of(pipe: DiffusionPipeline) -> dict[str, Any]:
    return cache_reports(pipe)["transformer"].to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("cache_type", CacheType, ids=str)
def test_the_published_call_works_for_every_method(pipe, cache_type, uncached):
    options = CacheType.default_options(cache_type)
    for name in ("Fn_compute_blocks", "Bn_compute_blocks", "warmup_steps", "residual_diff_threshold"):
        if name in options:
            options[name] = DBCACHE[name]
    assert apply_cache_on_pipe(pipe, **options) is pipe
    image = draw(pipe)
    report = report_of(pipe)
    assert report["method"] == cache_type
    assert [(step["step"], step["branch"]) for step in report["steps"]] == [(step, "cond") for step in range(STEPS)]
    reused = sum(bool(i["cached"] or i["pruned_blocks"]) for step in report["steps"] for i in step["images"])
    assert torch.equal(image, uncached) == (reused == 0) == (cache_type is CacheType.NONE)


def test_every_call_is_a_session_of_its_own_also_after_one_that_raised(pipe):
    apply_cache_on_pipe(pipe, **DBCACHE)
    image, report = draw(pipe), report_of(pipe)
    assert report["totals"]["cached_steps"][0] > 0

    def interrupt(pipe: FluxPipeline, step: int, *_: Any) -> dict[str, Any]:
        if step == 3:
            raise JobAborted(step, "cond")
        return {}

    with pytest.raises(JobAborted):
        draw(pipe, callback_on_step_end=interrupt)
    assert len(report_of(pipe)["steps"]) == 4, "the report of what was done stays"
    assert attachment_of(pipe.transformer).session is None
    assert torch.equal(draw(pipe), image)
    assert report_of(pipe) == report


def test_other_images_need_no_other_pipeline(pipe):
    apply_cache_on_pipe(pipe, **DBCACHE)
    assert draw(pipe, num_images_per_prompt=2, num_inference_steps=3, width=96).shape[0] == 2
    assert [len(step["images"]) for step in report_of(pipe)["steps"]] == [2, 2, 2]


def test_remove_cache_restores_the_pipeline(pipe, uncached):
    forwards = {name: vars(module).get("forward") for name, module in pipe.transformer.named_modules()}
    apply_cache_on_pipe(pipe, **DBCACHE)
    draw(pipe)
    assert remove_cache(pipe) is pipe
    assert type(pipe) is FluxPipeline
    assert "_raycache" not in vars(pipe)
    assert {name: vars(module).get("forward") for name, module in pipe.transformer.named_modules()} == forwards
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.transformer.modules())
    assert torch.equal(draw(pipe), uncached)
    assert remove_cache(pipe) is pipe, "once more does nothing"
    assert cache_reports(pipe) == {}


@pytest.mark.slow
def test_two_pipelines_of_one_class_do_not_touch_each_other(folder, pipe, uncached):
    other, plain = load(folder), load(folder)
    apply_cache_on_pipe(pipe, **DBCACHE)
    apply_cache_on_pipe(other, CacheType.DBPrune, **DBCACHE)
    assert torch.equal(draw(plain), uncached)
    first, second = draw(pipe), draw(other)
    assert report_of(pipe)["method"] == "DBCache"
    assert report_of(other)["method"] == "DBPrune"
    assert not torch.equal(first, second)
    remove_cache(pipe)
    assert torch.equal(draw(pipe), uncached)
    assert torch.equal(draw(other), second)
    assert "_CachedPipeline" not in str(FluxPipeline.__mro__)


def test_applying_again_replaces_the_options(pipe, uncached):
    apply_cache_on_pipe(pipe, **DBCACHE)
    apply_cache_on_pipe(pipe, CacheType.DBPrune, **DBCACHE)
    draw(pipe)
    assert report_of(pipe)["method"] == "DBPrune"
    with pytest.raises(BlockCountError):
        apply_cache_on_pipe(pipe, Fn_compute_blocks=9)
    draw(pipe)
    assert report_of(pipe)["method"] == "DBPrune", "a refused call changes nothing"
    remove_cache(pipe)
    assert torch.equal(draw(pipe), uncached)


def test_true_cfg_keeps_cond_and_uncond_apart(pipe):
    """Each branch decides as it would if the other computed everything: counters and differences are its own."""
    guided = {"true_cfg_scale": 2.0, "negative_prompt": "blue"}
    apply_cache_on_pipe(pipe, CacheType.FBCache, warmup_steps=2, residual_diff_threshold=1e-9)
    draw(pipe, **guided)
    first = report_of(pipe)["steps"]
    assert [step["branch"] for step in first] == ["cond", "uncond"] * STEPS
    assert [step["step"] for step in first] == [step for step in range(STEPS) for _ in range(2)]
    differences = {
        branch: [s["images"][0]["residual_diff"] for s in first if s["branch"] == branch]
        for branch in ("cond", "uncond")
    }
    assert differences["cond"][:2] == differences["uncond"][:2] == [None, None]
    assert differences["cond"] != differences["uncond"]
    assert max(differences["cond"][2:] + differences["uncond"][2:]) < 0.5, "compared with its own branch, not the other"

    apply_cache_on_pipe(pipe, CacheType.FBCache, warmup_steps=2, residual_diff_threshold=1.0, max_cached_steps=1)
    draw(pipe, **guided)
    totals = report_of(pipe)["totals"]
    assert totals["steps"] == 2 * STEPS
    assert totals["cached_steps"] == [2], "one step of each branch"


def test_the_summary_is_a_short_table(pipe, capsys):
    assert cache_summary(pipe) == "no cached call yet"
    apply_cache_on_pipe(pipe, **DBCACHE)
    draw(pipe, true_cfg_scale=2.0, negative_prompt="blue")
    capsys.readouterr()
    text = cache_summary(pipe)
    assert capsys.readouterr().out == text + "\n"
    lines = text.splitlines()
    assert lines[0].startswith(f"transformer: DBCache, {2 * STEPS} steps of 6 blocks")
    assert [line.split()[:2] for line in lines[2:]] == [["0", "cond"], ["0", "uncond"]]
    for line, branch in zip(lines[2:], ("cond", "uncond"), strict=True):
        cached = [s["images"][0]["cached"] for s in report_of(pipe)["steps"] if s["branch"] == branch]
        assert line.split()[-1] == "".join(".#"[flag] for flag in cached)
        assert line.split()[2] == str(sum(cached))
        share = 1 - sum(cached) * 4 / (6 * STEPS)
        assert line.split()[3] == f"{share:.1%}"


def test_names_of_parameters_and_modules_do_not_change(pipe):
    """What LoRA, ControlNet and checkpoints go by."""
    before = list(pipe.transformer.state_dict()), [name for name, _ in pipe.transformer.named_modules()]
    apply_cache_on_pipe(pipe, **DBCACHE)
    assert (list(pipe.transformer.state_dict()), [name for name, _ in pipe.transformer.named_modules()]) == before


def test_saving_moving_and_sharing_work_on_a_cached_pipeline(pipe, tmp_path, uncached):
    apply_cache_on_pipe(pipe, **DBCACHE)
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again) is FluxPipeline
    assert torch.equal(draw(again), uncached)

    shared = FluxImg2ImgPipeline.from_pipe(pipe)
    assert type(shared) is FluxImg2ImgPipeline
    assert shared.transformer is pipe.transformer
    assert torch.equal(draw(FluxPipeline.from_pipe(pipe)), uncached), "a pipeline that shares the model is not cached"

    assert pipe.to(torch.float64).dtype == torch.float64
    draw(pipe, generator=None)
    assert report_of(pipe)["totals"]["steps"] == STEPS


def test_a_swapped_transformer_is_cached_too(folder, pipe, uncached):
    apply_cache_on_pipe(pipe, **DBCACHE)
    image = draw(pipe)
    pipe.transformer = load(folder).transformer
    assert torch.equal(draw(pipe), image)
    assert not hasattr(pipe.transformer, "_diffusers_hook")
    apply_cache_on_pipe(pipe, **DBCACHE)
    assert hasattr(pipe.transformer, "_diffusers_hook")
    remove_cache(pipe)
    assert torch.equal(draw(pipe), uncached)


def test_both_transformers_of_a_pipeline_have_reports_of_their_own(folder):
    class TwoTransformers(FluxPipeline):
        """As Wan 2.2 has them: the second draws the last steps."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            own, (self.transformer, self.transformer_2) = self.transformer, (self.transformer_2, self.transformer)
            try:
                super().__call__(*args, **kwargs)
            finally:
                self.transformer, self.transformer_2 = own, self.transformer
            return super().__call__(*args, **kwargs)

    first, second = load(folder), load(folder)
    pipe = TwoTransformers(**first.components)
    pipe.transformer_2 = second.transformer
    pipe.set_progress_bar_config(disable=True)
    apply_cache_on_pipe(pipe, **DBCACHE)
    draw(pipe)
    reports = cache_reports(pipe)
    assert [(name, len(report.steps)) for name, report in reports.items()] == [
        ("transformer", STEPS),
        ("transformer_2", STEPS),
    ]
    remove_cache(pipe)
    assert attachment_of(first.transformer) is attachment_of(second.transformer) is None


@pytest.mark.slow
def test_compiling_the_transformer_of_a_cached_pipeline(pipe, uncached):
    graphs: list[torch.fx.GraphModule] = []
    torch._dynamo.reset()
    apply_cache_on_pipe(pipe, **DBCACHE)
    image = draw(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(draw(pipe), image, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 3
    draw(pipe)
    assert len(graphs) == 3
    pipe.transformer = torch.compile(pipe.transformer._orig_mod, fullgraph=True)
    with pytest.raises(ValueError, match="fullgraph=True"):
        draw(pipe)
    pipe.transformer = pipe.transformer._orig_mod
    remove_cache(pipe)
    assert torch.equal(draw(pipe), uncached)


def test_names_of_the_class_stay(pipe):
    apply_cache_on_pipe(pipe, **DBCACHE)
    assert isinstance(pipe, FluxPipeline)
    assert not isinstance(pipe, WanPipeline)
    assert type(pipe).__name__ == "FluxPipeline"
    assert type(pipe).__qualname__ == FluxPipeline.__qualname__
