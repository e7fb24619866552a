"""Real pipelines that are suspended at their transformer's call: what they draw together is what each draws alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from cache_core import CacheOptions, DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from raycache.demo.noise import build_noise_model
from raycache.worker.stepper import Ended, Stepper
from tests.helpers.flux_pipe import draw, load
from tests.helpers.tiny_flux import decisions

CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.3)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> FluxPipeline:
    folder: Path = tmp_path_factory.mktemp("noise") / "model"
    return load(build_noise_model(folder, layers=2, single_layers=4))


def text(steps: int, seed: int, guidance: float = 3.5) -> Callable[[Any], torch.Tensor]:
    return lambda pipe: draw(
        pipe,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
    )


def image(steps: int, strength: float) -> Callable[[Any], torch.Tensor]:
    start = Image.new("RGB", (64, 64), "red")
    return lambda pipe: draw(pipe, image=start, strength=strength, num_inference_steps=steps)


def together(
    stepper: Stepper, jobs: dict[str, tuple[Any, CacheOptions, int]], **pipes: Any
) -> tuple[dict[str, Ended], list[int]]:
    """Every tick: who is due begins, and whoever may share a call does."""
    ended: dict[str, Ended] = {}
    rows, tick = [], 0
    while len(ended) < len(jobs):
        for name, (call, options, due) in jobs.items():
            if due == tick:
                assert stepper.start(name, call, options, pipes.get(name)) is None
        groups: dict[Any, list[str]] = {}
        for name, key in stepper.waiting.items():
            groups.setdefault(key, []).append(name)
        for names in groups.values():
            rows.append(len(names))
            ended |= {one.name: one for one in stepper.step(names)}
        tick += 1
    return ended, rows


def alone(pipe: Any, call: Callable[[Any], torch.Tensor], options: CacheOptions) -> tuple[torch.Tensor, Any]:
    with torch.no_grad(), cache_session(pipe.transformer, options) as report:
        return call(pipe), report


def test_jobs_of_any_steps_guidance_and_task_share_calls(pipe: FluxPipeline):
    other = FluxImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    jobs = {
        "a": (text(6, 1), CACHE, 0),
        "b": (text(9, 2, guidance=1.5), CACHE.model_copy(update={"residual_diff_threshold": 0.1}), 0),
        "c": (text(3, 3), CACHE.model_copy(update={"warmup_steps": 1, "taylor_order": 1}), 4),
        "image": (image(8, 0.6), CACHE, 2),
    }
    ended, rows = together(Stepper(pipe), jobs, image=other)
    assert max(rows) == 4
    for name, (call, options, _) in jobs.items():
        expected, report = alone(other if name == "image" else pipe, call, options)
        assert ended[name].error is None
        torch.testing.assert_close(ended[name].result, expected, atol=1e-4, rtol=1e-4)
        assert decisions(ended[name].report) == decisions(report)
    assert any(d[0] for d in decisions(ended["b"].report) + decisions(ended["a"].report))


def test_other_methods_and_sizes_do_not_share_a_call(pipe: FluxPipeline):
    stepper = Stepper(pipe)
    stepper.start("a", text(3, 1), CACHE)
    stepper.start("b", text(3, 1), FBCacheOptions(warmup_steps=1))
    stepper.start("c", lambda own: draw(own, width=128), CACHE)
    assert len(set(stepper.waiting.values())) == 3
    for others in (["a", "b"], ["a", "c"]):
        with pytest.raises(ValueError, match="cannot be stacked"):
            stepper.step(others)
    for name in "abc":
        stepper.end(name)
    assert not stepper.waiting


def test_who_ends_midway_leaves_the_others_as_they_were(pipe: FluxPipeline):
    stepper = Stepper(pipe)
    unwound: list[bool] = []

    def watched(own: Any) -> torch.Tensor:
        try:
            return text(9, 5)(own)
        finally:
            unwound.append(True)

    stepper.start("a", text(6, 1), CACHE)
    stepper.start("gone", watched, CACHE)
    for _ in range(3):
        stepper.step(["a", "gone"])
    assert stepper.end("gone").result is None
    assert unwound
    last: list[Ended] = []
    while not last:
        last = stepper.step(["a"])
    expected, _ = alone(pipe, text(6, 1), CACHE)
    torch.testing.assert_close(last[0].result, expected, atol=1e-4, rtol=1e-4)


def test_a_job_that_raises_ends_alone(pipe: FluxPipeline):
    stepper = Stepper(pipe)

    def bad(own: Any) -> Any:
        draw(own, num_inference_steps=2)
        raise RuntimeError("in its own code")

    assert stepper.start("bad", bad, NoCacheOptions()) is None
    assert stepper.start("good", text(4, 1), NoCacheOptions()) is None
    first = stepper.step(["bad", "good"])
    assert not first
    (ended,) = stepper.step(["bad", "good"])
    assert (ended.name, str(ended.error)) == ("bad", "in its own code")
    assert list(stepper.waiting) == ["good"]
    stepper.end("good")
    early = stepper.start("early", lambda own: 1 / 0, NoCacheOptions())
    assert early is not None
    assert isinstance(early.error, ZeroDivisionError)


def test_a_call_that_fails_is_run_again_in_parts(pipe: FluxPipeline, monkeypatch: pytest.MonkeyPatch):
    """Out of memory with two rows: both jobs still wait, and are drawn one by one."""
    stepper, block = Stepper(pipe), pipe.transformer.single_transformer_blocks[-1]
    inside = block.norm.forward

    def small(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[0] > 1:
            raise torch.OutOfMemoryError("too many rows")
        return inside(hidden, *args, **kwargs)

    monkeypatch.setattr(block.norm, "forward", small)
    for name, seed in (("a", 1), ("b", 2)):
        stepper.start(name, text(3, seed), NoCacheOptions())
    with pytest.raises(torch.OutOfMemoryError):
        stepper.step(["a", "b"])
    ended: dict[str, Ended] = {}
    while stepper.waiting:
        for name in list(stepper.waiting):
            ended |= {one.name: one for one in stepper.step([name])}
    for name, seed in (("a", 1), ("b", 2)):
        expected, _ = alone(pipe, text(3, seed), NoCacheOptions())
        torch.testing.assert_close(ended[name].result, expected, atol=1e-4, rtol=1e-4)
        assert [step.step for step in ended[name].report.steps] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        CACHE.model_copy(update={"taylor_order": 1}),
        FBCacheOptions(warmup_steps=2, residual_diff_threshold=0.3),
        DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.3),
    ],
    ids=lambda options: options.type,
)
@pytest.mark.parametrize("place", ["first", "middle", "last", "after"])
def test_a_call_that_fails_leaves_no_mark_on_what_is_cached(
    pipe: FluxPipeline, monkeypatch: pytest.MonkeyPatch, options: CacheOptions, place: str
):
    """Every call of more than one row runs out of memory where it computes two, and is made again one by one."""
    transformer = pipe.transformer
    module = {
        "first": transformer.transformer_blocks[0].norm1,
        "middle": transformer.single_transformer_blocks[1].norm,
        "last": transformer.single_transformer_blocks[-1].norm,
        "after": transformer.norm_out,
    }[place]
    inside, failed = module.forward, 0

    def small(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[0] > 1:
            raise torch.OutOfMemoryError("too many rows")
        return inside(hidden, *args, **kwargs)

    monkeypatch.setattr(module, "forward", small)
    stepper, ended = Stepper(pipe), dict[str, Ended]()
    jobs = {"a": text(8, 1), "b": text(6, 2)}
    for name, call in jobs.items():
        stepper.start(name, call, options)
    stepper.step(["a"])  # so they are at different steps from here on
    while names := list(stepper.waiting):
        try:
            ended |= {one.name: one for one in stepper.step(names)}
        except torch.OutOfMemoryError:
            failed += 1
            for name in names:
                ended |= {one.name: one for one in stepper.step([name])}
    assert failed
    for name, call in jobs.items():
        expected, report = alone(pipe, call, options)
        torch.testing.assert_close(ended[name].result, expected, atol=1e-4, rtol=1e-4)
        assert decisions(ended[name].report) == decisions(report)
        assert any(reason == "below" for _, reason, _ in decisions(report))


def test_a_name_is_given_once(pipe: FluxPipeline):
    stepper = Stepper(pipe)
    stepper.start("a", text(2, 1), NoCacheOptions())
    with pytest.raises(ValueError, match="'a' is already active"):
        stepper.start("a", text(2, 1), NoCacheOptions())
    stepper.end("a")
