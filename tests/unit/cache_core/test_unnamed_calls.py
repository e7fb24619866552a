"""True CFG in two calls that no ``cache_context`` names: the pipelines' own, and hand-made ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from diffusers.hooks import HookRegistry, ModelHook

from cache_core import DBCacheOptions, FBCacheOptions, apply_cache_on_pipe, cache_reports, cache_session
from cache_core.given import given_to
from cache_core.hooks import Attachment
from tests.helpers.flux_pipe import load

STEPS = 16


@pytest.fixture
def kontext(folder: Path) -> FluxKontextPipeline:
    pipe = FluxKontextPipeline(**load(folder).components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: FluxPipeline, *, true_cfg_scale: float = 2.0, negative: str = "blue square") -> torch.Tensor:
    return pipe(
        prompt="a red circle",
        negative_prompt=negative,
        true_cfg_scale=true_cfg_scale,
        height=64,
        width=64,
        max_area=64 * 64,
        _auto_resize=False,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        max_sequence_length=16,
    ).images


@pytest.mark.slow
def test_kontext_keeps_prompt_and_negative_prompt_apart(kontext: FluxKontextPipeline):
    plain = draw(kontext)
    apply_cache_on_pipe(kontext, "FBCache", residual_diff_threshold=1e-6, warmup_steps=STEPS // 2)
    drawn = draw(kontext)
    steps = cache_reports(kontext)["transformer"].steps
    assert [(step.branch, step.step) for step in steps] == [
        (branch, k) for k in range(STEPS) for branch in ("default", "default#2")
    ]
    assert [step.images[0].reason for step in steps].count("warmup") == STEPS  # the first half, of both branches
    assert torch.equal(drawn, plain)


def test_each_branch_reuses_its_own(kontext: FluxKontextPipeline):
    """With every middle reused, guidance by another prompt still makes another image."""
    apply_cache_on_pipe(kontext, "FBCache", residual_diff_threshold=100.0, warmup_steps=2, max_cached_steps=-1)
    cached, other = draw(kontext), draw(kontext, negative="a green star on a black background")
    steps = cache_reports(kontext)["transformer"].steps
    assert sum(step.images[0].cached for step in steps) > STEPS
    assert not torch.allclose(cached, other, atol=1e-3)


def test_one_call_a_step_is_one_branch(kontext: FluxKontextPipeline):
    apply_cache_on_pipe(kontext, "DBCache", Fn_compute_blocks=1, Bn_compute_blocks=0, warmup_steps=2)
    draw(kontext, true_cfg_scale=1.0)
    assert {step.branch for step in cache_reports(kontext)["transformer"].steps} == {"default"}


class Calls:
    """Calls of a tiny FLUX with conditioning of their own; who is called when is recorded by the report."""

    def __init__(self, flux: torch.nn.Module, job: object) -> None:
        self.flux, self.job, self.remade = flux, job, False
        static = job.static()
        self.static = [
            static | {"encoder_hidden_states": static["encoder_hidden_states"] * scale} for scale in (1.0, -0.5, 0.25)
        ]

    def __call__(self, text: int, time: float, latents: torch.Tensor) -> torch.Tensor:
        timestep = torch.full((latents.shape[0],), time)
        static = self.static[text]
        if self.remade:  # some pipelines convert or repeat their text at every call, and let go of it
            static = static | {name: static[name].clone() for name in ("encoder_hidden_states", "pooled_projections")}
        return self.flux(hidden_states=latents, timestep=timestep, return_dict=False, **static)[0]


@pytest.fixture
def calls(flux: torch.nn.Module) -> Calls:
    from tests.helpers.tiny_flux import Job

    return Calls(flux, Job())


@pytest.mark.slow
@pytest.mark.parametrize("remade", [False, True])
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_any_number_of_calls_a_step(calls: Calls, branches: int, remade: bool):
    """Each branch takes the decisions, and gives the outputs, that it does in a session of its own."""
    calls.remade = remade
    options, times = FBCacheOptions(residual_diff_threshold=0.6, warmup_steps=2), [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    generator = torch.Generator().manual_seed(0)
    drift = [calls.job.start() + 0.05 * k * torch.randn(calls.job.start().shape, generator=generator) for k in range(6)]
    alone = []
    for text in range(branches):
        with cache_session(calls.flux, options) as report:
            outputs = [calls(text, time, latents) for time, latents in zip(times, drift, strict=True)]
        alone.append((outputs, [step.images[0].cached for step in report.steps]))
    with cache_session(calls.flux, options) as report:
        together = [
            [calls(text, time, latents) for text in range(branches)] for time, latents in zip(times, drift, strict=True)
        ]
    for text, (outputs, cached) in enumerate(alone):
        assert [step.images[0].cached for step in report.steps[text::branches]] == cached
        assert all(torch.equal(row[text], own) for row, own in zip(together, outputs, strict=True))
        assert any(cached)


#: Which texts are asked at each of six steps, and in which order.
TURNS = {
    "order changes": [(0, 1), (1, 0), (0, 1), (0, 1), (1, 0), (1, 0)],
    "three change order": [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1), (2, 1, 0), (0, 1, 2)],
    "guidance ends": [(1, 0), (1, 0), (0,), (0,), (0,), (0,)],
    "guidance begins": [(0,), (0,), (1, 0), (1, 0), (1, 0), (1, 0)],
}


@pytest.mark.slow
@pytest.mark.parametrize("remade", [False, True])
@pytest.mark.parametrize("turns", TURNS)
def test_a_text_keeps_its_branch_whatever_its_place_in_the_step(calls: Calls, turns: str, remade: bool):
    """Each text takes the decisions, and gives the outputs, that it does in a session of its own."""
    calls.remade = remade
    options, times = FBCacheOptions(residual_diff_threshold=0.6, warmup_steps=2), [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    generator = torch.Generator().manual_seed(0)
    drift = [calls.job.start() + 0.05 * k * torch.randn(calls.job.start().shape, generator=generator) for k in range(6)]
    asked = [(text, k) for k, texts in enumerate(TURNS[turns]) for text in texts]
    with cache_session(calls.flux, options) as report:
        drawn = [calls(text, times[k], drift[k]) for text, k in asked]
    told = [step.images[0].cached for step in report.steps]
    for text in {text for text, _ in asked}:
        with cache_session(calls.flux, options) as report:
            alone = [calls(text, times[k], drift[k]) for own, k in asked if own == text]
        assert [step.images[0].cached for step in report.steps] == [
            cached for cached, (own, _) in zip(told, asked, strict=True) if own == text
        ]
        assert all(
            map(torch.equal, alone, [output for output, (own, _) in zip(drawn, asked, strict=True) if own == text])
        )
    assert any(told)


@pytest.mark.parametrize("remade", [False, True])
def test_two_steps_at_one_timestep_are_two_steps(calls: Calls, remade: bool):
    """Heun evaluates twice at each time but the first."""
    calls.remade = remade
    with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)) as report:
        for k, time in enumerate((1.0, 0.8, 0.8, 0.6, 0.6)):
            for text in (0, 1):
                calls(text, time, calls.job.start() * (1 + 0.01 * k))
    assert [(s.branch, s.step) for s in report.steps] == [(b, k) for k in range(5) for b in ("default", "default#2")]


def test_a_call_that_raised_is_repeated_in_its_own_branch(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    block = calls.flux.transformer_blocks[1]
    with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)) as report:
        calls(0, 1.0, calls.job.start())
        with monkeypatch.context() as patch:
            patch.setattr(block.norm1, "forward", None)
            with pytest.raises(TypeError):
                calls(1, 1.0, calls.job.start())
        calls(1, 1.0, calls.job.start())
        calls(0, 0.9, calls.job.start())
    assert [(s.branch, s.step) for s in report.steps] == [("default", 0), ("default#2", 0), ("default", 1)]


@pytest.mark.parametrize("told", ["adapter", "rows"])
def test_the_same_text_is_told_apart_by_what_else_changes(calls: Calls, told: str):
    """Other images of an adapter in the same dict, or the prompt's row once more."""
    attention: dict[str, torch.Tensor] = {}
    calls.static = [calls.static[0] | {"joint_attention_kwargs": attention}] * 2
    latents = calls.job.start()
    with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)) as report:
        for time in (1.0, 0.9, 0.8):
            for call in (0, 1):
                rows = 2 if told == "rows" and call == 0 else 1
                if told == "adapter":
                    attention["scale_of_images"] = torch.full((1,), 1.0 + call)
                calls(call, time, latents.expand(rows, -1, -1))
    assert [s.branch for s in report.steps] == ["default", "default#2"] * 3


def _share(kwargs: dict[str, Any], rank: int) -> dict[str, Any]:
    names = {"encoder_hidden_states": 1, "txt_ids": 0}
    return kwargs | {name: kwargs[name].chunk(2, dim)[rank] for name, dim in names.items()}


class _Split(ModelHook):
    """As diffusers' context parallelism splits the text at the root, on one of two ranks."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return args, _share(kwargs, self.rank)


def _split(flux: torch.nn.Module, how: str, rank: int) -> None:
    if how == "hook":
        HookRegistry.check_if_exists_or_initialize(flux).register_hook(_Split(rank), "split")
    else:  # as ParaAttention does
        original_forward = flux.forward
        flux.forward = lambda **kwargs: original_forward(**_share(kwargs, rank))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["cache", "split"])
@pytest.mark.parametrize("how", ["hook", "forward"])
@pytest.mark.parametrize("remade", [False, True])
def test_all_ranks_tell_texts_apart_that_differ_on_one_of_them(calls: Calls, how: str, remade: bool, first: str):
    """The second halves of both prompts hold nothing but padding."""
    for static in calls.static:
        static["encoder_hidden_states"][:, 2:] = 0.0
    calls.remade, whole, told = remade, calls.flux, []
    for rank in (0, 1):
        calls.flux = copy.deepcopy(whole)
        if first == "cache":
            Attachment(calls.flux)
        _split(calls.flux, how, rank)
        with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)) as report:
            for time in (1.0, 0.8, 0.8, 0.6):
                for text in (0, 1):
                    calls(text, time, calls.job.start())
        told.append([(step.branch, step.step) for step in report.steps])
    assert told[0] == told[1] == [(branch, k) for k in range(4) for branch in ("default", "default#2")]


def test_guidance_inside_a_wrapper(calls: Calls):
    """Its two calls were given the same from outside, and the first one's text is not what was given."""
    Attachment(calls.flux)
    inner, negative = calls.flux.forward, calls.static[1]["encoder_hidden_states"]

    def guided(**kwargs: Any) -> Any:
        without = inner(**kwargs | {"encoder_hidden_states": negative})[0]
        return (without + 2.0 * (inner(**kwargs)[0] - without),)

    calls.flux.forward = guided
    with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)) as report:
        for time in (1.0, 0.8, 0.6):
            calls(0, time, calls.job.start())
    assert [(s.branch, s.step) for s in report.steps] == [(b, k) for k in range(3) for b in ("default", "default#2")]


def test_nothing_of_a_call_is_kept_and_no_hook_stays(calls: Calls):
    with cache_session(calls.flux, DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0)):
        calls(0, 1.0, calls.job.start())
        assert given_to(calls.flux) is None
        with pytest.raises(TypeError):
            calls.flux(hidden_states=calls.job.start(), nothing_like_it=1)
        assert given_to(calls.flux) is None
        assert calls.flux._forward_pre_hooks
    assert not calls.flux._forward_pre_hooks
    assert not calls.flux._forward_hooks
