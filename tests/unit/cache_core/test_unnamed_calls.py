"""True CFG in two calls that no ``cache_context`` names: the pipelines' own, and hand-made ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline

from cache_core import DBCacheOptions, FBCacheOptions, apply_cache_on_pipe, cache_reports, cache_session
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
