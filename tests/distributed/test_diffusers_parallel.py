"""The cache under diffusers' own context parallelism: the ranks of a model that is split at its first block
(Qwen-Image, Wan) draw and decide as one alone, whoever came first. Calls of a model that is split at its root (FLUX, by
diffusers or by ParaAttention) are told apart alike on all ranks.

Ulysses over gloo. Ring attention needs a kernel that returns the log-sum-exp, which the native attention of a CPU does
not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks

METHODS: dict[str, dict[str, Any]] = {
    "DBCache": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2, "residual_diff_threshold": 0.1},
    "DBPrune": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2, "residual_diff_threshold": 0.1},
}
MODELS = ("QwenImageTransformer2DModel", "WanTransformer3DModel")
#: Tokens of what is remembered, on all ranks together: Qwen-Image's blocks change image and text, Wan's the image only.
TOKENS = {"QwenImageTransformer2DModel": {16, 6}, "WanTransformer3DModel": {32}}
ORDERS = ("cache first", "parallel first", "session")
STEPS = 8


def _pipe(name: str) -> Any:
    """A pipeline of nothing but the tiny transformer."""
    from diffusers import DiffusionPipeline

    from tests.helpers.tiny_transformers import build

    class Steps(DiffusionPipeline):
        def __init__(self, transformer: torch.nn.Module) -> None:
            super().__init__()
            self.register_modules(transformer=transformer)

        def __call__(self) -> dict[str, Any]:
            return _steps(self.transformer, name)

    return Steps(build(name))


def _steps(model: torch.nn.Module, name: str) -> dict[str, Any]:
    """Every step's prediction for two images, one that moves little and one that moves much; what was remembered."""
    from cache_core.hooks import attachment_of
    from tests.helpers.conditioned_images import Images
    from tests.helpers.tiny_transformers import TINY

    outputs = []
    with torch.no_grad():
        for step in range(STEPS):
            inputs = TINY[name].inputs(Images((1, 2), (0.02, 0.2), step))
            outputs.append(model(**inputs, return_dict=False)[0])
    held = attachment_of(model).session.tensors()
    remembered = {tensor.shape[-2] for tensor in held if tensor.ndim > 1}  # [..., tokens, channels]
    return {"outputs": torch.stack(outputs), "remembered": remembered}


def _told(report: Any) -> dict[str, Any]:
    return {
        "decisions": [[(i.cached, i.reason, i.pruned_blocks) for i in step.images] for step in report.steps],
        "differences": [
            d for step in report.steps for i in step.images for d, _ in i.differences.values() if d is not None
        ],
        "collectives": report.collectives,
    }


def _parallelize(model: Any) -> None:
    from diffusers import ContextParallelConfig

    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))


def _draw(order: str, name: str, method: str) -> dict[str, Any]:
    from cache_core import apply_cache_on_pipe, cache_reports, cache_session, find_group

    pipe = _pipe(name)
    if order == "cache first":
        apply_cache_on_pipe(pipe, method, **METHODS[method])
    if order != "alone":
        _parallelize(pipe.transformer)
    if order == "parallel first":
        apply_cache_on_pipe(pipe, method, **METHODS[method])
    if order in ("cache first", "parallel first"):
        return pipe() | _told(cache_reports(pipe)["transformer"])
    options = {"type": method, **METHODS[method]}
    with cache_session(pipe.transformer, options, group=find_group(pipe.transformer)) as report:
        drawn = _steps(pipe.transformer, name)
    return drawn | _told(report)


def _draw_two_texts(how: str) -> dict[str, Any]:
    """Two unnamed calls a step, for prompts that differ in the first half of their text only: on rank 0."""
    from cache_core import cache_session, find_group
    from tests.helpers.tiny_flux import Job, tiny_flux

    flux, job = tiny_flux(1, 3), Job(steps=6)
    if how == "diffusers":
        _parallelize(flux)
    elif how == "ParaAttention":
        from raycache.worker.context_parallel import parallelize

        parallelize(flux)
    texts = [job.static(), job.static() | {"encoder_hidden_states": job.static(5)["encoder_hidden_states"]}]
    for static in texts:
        static["encoder_hidden_states"][:, job.text // 2 :] = 0.0
    options = {"type": "FBCache", "warmup_steps": 2, "residual_diff_threshold": 0.28}
    latents, outputs = job.start(), []
    with cache_session(flux, options, group=find_group(flux)) as report, torch.no_grad():
        for step in range(job.steps):
            both = [
                flux(hidden_states=latents, timestep=job.timestep(step), return_dict=False, **static)[0]
                for static in texts
            ]
            latents = latents - 0.1 * (2 * both[0] - both[1]) + job.drift(step)
            outputs += both
    branches = [(step.branch, step.step) for step in report.steps]
    return _told(report) | {"outputs": torch.stack(outputs), "branches": branches}


def _on_every_rank(rank: int, world_size: int) -> dict[str, Any]:
    # diffusers divides by the number of accelerators, which a CPU has none of.
    torch.accelerator.device_count = lambda: 1  # type: ignore[assignment]
    drawn: dict[Any, Any] = {
        (order, name, method): _draw(order, name, method)
        for order in ("alone", *ORDERS)
        for name in MODELS
        for method in METHODS
    }
    return drawn | {how: _draw_two_texts(how) for how in ("alone", "diffusers", "ParaAttention")}


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_ranks(2, _on_every_rank)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ORDERS)
def test_ranks_split_at_the_first_block_draw_and_decide_as_one(answers, order, name, method):
    for answer in answers:
        alone, together = answer["alone", name, method], answer[order, name, method]
        assert together["decisions"] == alone["decisions"]
        assert together["differences"] == pytest.approx(alone["differences"], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(together["outputs"], alone["outputs"], rtol=1e-4, atol=1e-4)
        assert alone["collectives"] == 0
        assert together["collectives"] == answers[0][order, name, method]["collectives"] >= STEPS
        assert alone["remembered"] == TOKENS[name]
        assert together["remembered"] == {tokens // 2 for tokens in TOKENS[name]}
    reused = [cached or bool(pruned) for step in alone["decisions"] for cached, _, pruned in step]
    assert True in reused
    assert False in reused[4:]


@pytest.mark.parametrize("how", ["diffusers", "ParaAttention"])
def test_texts_that_differ_on_one_rank_only_are_told_apart_on_both(answers, how):
    for answer in answers:
        alone, together = answer["alone"], answer[how]
        assert together["branches"] == [(branch, k) for k in range(6) for branch in ("default", "default#2")]
        assert together["decisions"] == alone["decisions"]
        torch.testing.assert_close(together["outputs"], alone["outputs"], rtol=1e-4, atol=1e-4)
        assert together["collectives"] > 0
    assert {step[0][0] for step in alone["decisions"][4:]} == {True, False}
