"""One rank carries out ticks: what fails ends what it must and no more, and nothing is done that others may not do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from cache_core import DBCacheOptions, DBPruneOptions, NoCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.gang.agreement import agreed
from raycache.models.flux import FluxFamily
from raycache.protocol.tick import Tick, TickReport
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from raycache.worker.prompt_cache import PromptCache
from tests.helpers.flux_pipe import load
from tests.helpers.one_rank import Failing, close, job, runner_of
from tests.helpers.ticks import draw


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> FluxPipeline:
    return load(build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=1, single_layers=2))


@pytest.fixture
def runner(pipe: FluxPipeline) -> Iterator[JobRunner]:
    yield runner_of(pipe)
    assert not pipe.transformer._forward_pre_hooks, "nothing is left on the transformer"


def test_jobs_that_come_and_go_are_what_each_is_alone(pipe: FluxPipeline, runner: JobRunner):
    prune = DBPruneOptions(Fn_compute_blocks=0, Bn_compute_blocks=0, warmup_steps=1, residual_diff_threshold=0.5)
    jobs = {job("a"): 0, job("b", 1, 9): 2, job("c", 2, 4, prune): 1, job("d", 3, 12, prune): 2, job("e", 4, 3): 5}
    drawn = draw(runner, jobs, abort={"d": 7})
    assert sorted(drawn.outputs) == ["a", "b", "c", "e"]
    for one in jobs:
        if one.id != "d":
            alone = draw(runner_of(pipe), {one: 0}).outputs[one.id]
            assert close(drawn.outputs[one.id], alone)
            assert [p["cached"] for step in drawn.outputs[one.id].report["steps"] for p in step["images"]] == [
                p["cached"] for step in alone.report["steps"] for p in step["images"]
            ]
    assert sorted({len(call.jobs) for call in drawn.calls}) == [1, 2, 3]
    assert any(share < 0.9 for call in drawn.calls for share in call.shares)
    assert all(call.seconds > 0 for call in drawn.calls)


@pytest.mark.parametrize("at", ["encode", "denoise", "decode"])
def test_an_error_of_one_is_its_own(pipe: FluxPipeline, at: str):
    drawn = draw(runner_of(pipe, observer=Failing("bad", at)), {job("good"): 0, job("bad", 1): 0, job("late", 2): 3})
    (failure,) = drawn.failures
    assert (failure.kind, failure.jobs, failure.phase, str(failure)) == (
        "error",
        ("bad",),
        at,
        "RuntimeError: on purpose",
    )
    assert sorted(drawn.outputs) == ["good", "late"]
    assert close(drawn.outputs["good"], draw(runner_of(pipe), {job("good"): 0}).outputs["good"])
    assert "in step_ends" in failure.trace or "in entered" in failure.trace


def test_an_error_in_the_last_step_does_not_hide_another_job_that_is_done(pipe: FluxPipeline):
    """Both end in one call; the one that fails is the first of it."""
    runner = runner_of(pipe, observer=Failing("bad", "denoise", step=2))
    runner.tick(Tick(0, start=(job("bad", 1, 3), job("good", 2, 3)), calls=(("bad", "good"),)))
    runner.tick(Tick(1, 0, calls=(("bad", "good"),)))
    last = runner.tick(Tick(2, 1, calls=(("bad", "good"),)))
    assert ([failure.jobs for failure in last.failures], last.done) == ([("bad",)], ["good"])
    assert list(runner.tick(Tick(3, 2, end=("good",))).outputs) == ["good"]


def test_after_a_failure_nothing_is_done_before_the_gang_knows(pipe: FluxPipeline):
    runner = runner_of(pipe, observer=Failing("bad", "denoise", step=0))
    first = runner.tick(Tick(0, start=(job("bad"), job("good")), calls=(("bad", "good"), ("good",))))
    assert len(first.failures) == 1
    assert len(first.calls) == 1, "the tick was broken off"
    ahead = runner.tick(Tick(1, knows=-1, calls=(("good",),)))
    assert ahead == TickReport(1, skipped=True)
    after = runner.tick(Tick(2, knows=0, abort=("gone before",), calls=(("good", "unknown"),), end=("good",)))
    assert [call.jobs for call in after.calls] == [("good",)]
    assert not after.outputs, "it is not done"
    assert runner.tick(Tick(3, knows=2, abort=("good",))).failures == []


def test_a_call_that_fails_together_leaves_its_jobs_where_they_are(
    pipe: FluxPipeline, runner: JobRunner, monkeypatch: pytest.MonkeyPatch
):
    """Out of memory where both are in one call: each is well alone."""
    block, forward = pipe.transformer.transformer_blocks[0], pipe.transformer.transformer_blocks[0].forward

    def full(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden_states) > 1:
            raise torch.OutOfMemoryError("on purpose")
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(block, "forward", full)
    jobs = job("a", cache=NoCacheOptions()), job("b", 1, cache=NoCacheOptions())
    (failure,) = runner.tick(Tick(0, start=jobs, calls=(("a", "b"),))).failures
    assert (failure.kind, failure.jobs, failure.type) == ("together", ("a", "b"), "OutOfMemoryError")
    done: set[str] = set()
    for number in range(1, 7):
        report = runner.tick(Tick(number, number - 1, calls=(("a",), ("b",))))
        assert not report.failures
        done |= set(report.done)
    assert done == {"a", "b"}
    outputs = agreed([runner.tick(Tick(7, 6, end=("a", "b")))]).outputs
    monkeypatch.undo()
    for one in jobs:
        assert close(outputs[one.id], draw(runner_of(pipe), {one: 0}).outputs[one.id])


def test_calls_that_cannot_be_one_are_made_apart(runner: JobRunner):
    """Whatever the plan says: all ranks part them alike."""
    wide = job("wide", 1, 3, size="128x64")
    report = runner.tick(Tick(0, start=(job("a"), wide, job("b", 2)), calls=(("a", "wide", "b"),)))
    assert [call.jobs for call in report.calls] == [("a", "b"), ("wide",)]
    runner.tick(Tick(1, 0, abort=("a", "b", "wide")))


def test_options_that_do_not_fit_end_their_job(runner: JobRunner):
    bad = job("bad", cache=DBCacheOptions(Fn_compute_blocks=9, Bn_compute_blocks=0))
    drawn = draw(runner, {bad: 0, job("good"): 0})
    assert "nearest legal value" in str(drawn.failures[0])
    assert list(drawn.outputs) == ["good"]


def test_only_rank_0_tells(pipe: FluxPipeline):
    drawn = draw(runner_of(pipe, rank=1), {job("a", preview_steps=(1,)): 0})
    assert (drawn.outputs, drawn.progress) == ({}, {})
    assert len(drawn.calls) == 6


@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_that_fails_is_left_out(pipe: FluxPipeline, monkeypatch: pytest.MonkeyPatch, fails: bool):
    image = np.zeros((1, 32, 32, 3), np.uint8)

    def preview(*_: object) -> np.ndarray:
        if fails:
            raise torch.OutOfMemoryError("on purpose")
        return image

    monkeypatch.setattr(FluxFamily, "preview", preview)
    drawn = draw(runner_of(pipe), {job("a", steps=3, preview_steps=(1,)): 0})
    assert [progress.step for progress in drawn.progress["a"]] == [1, 2, 3]
    assert [progress.preview is image for progress in drawn.progress["a"]] == [False, not fails, False]
    assert "a" in drawn.outputs


def test_a_prompt_is_encoded_once(pipe: FluxPipeline, monkeypatch: pytest.MonkeyPatch):
    encoded: list[str] = []
    encode = FluxPipeline.encode_prompt

    def counted(self: FluxPipeline, prompt: str, *args: Any, **kwargs: Any) -> Any:
        encoded.append(prompt)
        return encode(self, prompt, *args, **kwargs)

    monkeypatch.setattr(FluxPipeline, "encode_prompt", counted)
    context = RankContext(pipe, FluxFamily(), 0, torch.device("cpu"), 64, prompts=PromptCache(1 << 20))
    jobs = {job("a"): 0, job("b", 1): 1, job("c", 2, prompt="a blue square"): 1, job("d"): 9}
    drawn = draw(JobRunner(context, None), jobs)
    assert encoded == ["a red circle", "a blue square"]
    assert [drawn.outputs[name].known_prompt for name in "abcd"] == [False, True, False, True]
    assert close(drawn.outputs["d"], drawn.outputs["a"])
    assert not close(drawn.outputs["c"], draw(runner_of(pipe), {job("c", 2): 0}).outputs["c"])
    assert 0 < context.prompts.held_bytes <= 1 << 20
