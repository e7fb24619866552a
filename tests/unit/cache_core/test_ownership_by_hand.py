"""Whose calls a ``cache_session`` takes that somebody opened by hand, around a pipeline or a loop of one's own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from cache_core import apply_cache_on_pipe, cache_reports, cache_session, remove_cache
from cache_core.hooks import attachment_of
from tests.helpers import flux_pipe
from tests.helpers.flux_pipe import STEPS, load
from tests.helpers.tiny_flux import Job, draw, draw_cached, tiny_flux

OPTIONS = {"type": "DBCache", **flux_pipe.DBCACHE}
JOB, OTHER = Job(steps=6), Job(seeds=(7, 8), steps=4)


@pytest.fixture(scope="module")
def alone(folder) -> torch.Tensor:
    pipe = load(folder)
    with cache_session(pipe.transformer, OPTIONS) as report:
        image = flux_pipe.draw(pipe)
    assert any(step.images[0].cached for step in report.steps)
    return image


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.slow
def test_a_preview_by_another_pipeline(pipe, alone, folder):
    preview, drawn = FluxPipeline(**load(folder).components | {"transformer": pipe.transformer}), []
    preview.set_progress_bar_config(disable=True)

    def callback(*_: Any) -> dict[str, Any]:
        drawn.append(flux_pipe.draw(preview))
        return {}

    with cache_session(pipe.transformer, OPTIONS) as report:
        assert torch.equal(flux_pipe.draw(pipe, callback_on_step_end=callback), alone)
    assert [step.step for step in report.steps] == list(range(STEPS))
    plain = flux_pipe.draw(preview)
    assert all(torch.equal(image, plain) for image in drawn)


def test_the_next_image_in_the_same_session_begins_anew(pipe, alone):
    with cache_session(pipe.transformer, OPTIONS) as report:
        assert torch.equal(flux_pipe.draw(pipe), alone)
        assert torch.equal(flux_pipe.draw(pipe, width=96).shape and flux_pipe.draw(pipe), alone)
    assert [step.step for step in report.steps] == [*range(STEPS)] * 3


def test_the_next_image_after_one_that_failed(pipe, alone):
    def fail(*_: Any) -> dict[str, Any]:
        raise KeyError("stop")

    with cache_session(pipe.transformer, OPTIONS) as report:
        with pytest.raises(KeyError):
            flux_pipe.draw(pipe, callback_on_step_end=fail)
        assert torch.equal(flux_pipe.draw(pipe), alone)
    assert [step.step for step in report.steps] == [0, *range(STEPS)]


@pytest.mark.slow
def test_nothing_of_a_pipelines_call_outlives_the_session(pipe):
    seen: list[weakref.ref[torch.Tensor]] = []

    def look(_: Any, step: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(weakref.ref(state["latents"]))
        return {}

    with cache_session(pipe.transformer, OPTIONS):
        flux_pipe.draw(pipe, callback_on_step_end=look)
    gc.collect()
    assert len(seen) == STEPS
    assert not any(reference() is not None for reference in seen)


def test_a_job_handed_to_another_thread(pipe, alone):
    """``asyncio.to_thread`` takes the session along, for one image after the other."""

    async def job() -> list[torch.Tensor]:
        return [await asyncio.to_thread(flux_pipe.draw, pipe) for _ in range(2)]

    with cache_session(pipe.transformer, OPTIONS) as report:
        images = asyncio.run(job())
    assert all(torch.equal(image, alone) for image in images)
    assert len(report.steps) == 2 * STEPS


def test_another_loop_in_a_loop(flux):
    """Neither has a pipeline on the stack."""
    expected, other = draw_cached(flux, OPTIONS, JOB)[0], draw(flux, OTHER)
    inner: list[list[torch.Tensor]] = []
    with cache_session(flux, OPTIONS) as report:
        outputs = draw(flux, JOB, on_step=lambda step: inner.append(draw(flux, OTHER)) if step in (2, 4) else None)
    assert same(outputs, expected)
    assert all(same(one, other) for one in inner)
    assert [(step.step, len(step.images)) for step in report.steps] == [(k, 1) for k in range(6)]


def test_another_session_in_a_loop(flux):
    expected, other = draw_cached(flux, OPTIONS, JOB)[0], draw_cached(flux, {"type": "FBCache"}, OTHER)
    inner: list[Any] = []

    def between(step: int) -> None:
        if step in (2, 4):
            inner.append(draw_cached(flux, {"type": "FBCache"}, OTHER))

    with cache_session(flux, OPTIONS) as report:
        outputs = draw(flux, JOB, on_step=between)
    assert same(outputs, expected)
    assert [len(report.steps), *(len(own.steps) for _, own in inner)] == [6, 4, 4]
    assert all(same(one, other[0]) and own.to_dict() == other[1].to_dict() for one, own in inner)


def test_helpers_of_one_loop_are_one_job(flux):
    """A function a step, as samplers have it, and the first call from where the session was opened."""
    latents, static = JOB.start(), JOB.static()

    def predict(step: int) -> torch.Tensor:
        return flux(hidden_states=latents, timestep=JOB.timestep(step), return_dict=False, **static)[0]

    def denoise(step: int) -> torch.Tensor:
        return predict(step)

    with torch.no_grad(), cache_session(flux, OPTIONS) as report:
        flux(hidden_states=latents, timestep=JOB.timestep(0), return_dict=False, **static)
        for step in range(1, 6):
            (predict if step % 2 else denoise)(step)
    assert [step.step for step in report.steps] == list(range(6))


def in_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.slow
def test_a_thread_without_a_session(flux):
    """Its calls come between two of the session's, with other shapes too."""
    expected, other = draw_cached(flux, OPTIONS, JOB)[0], draw(flux, OTHER)
    inner: list[list[torch.Tensor]] = []
    with cache_session(flux, OPTIONS) as report:
        outputs = draw(flux, JOB, on_step=lambda _: in_thread(lambda: inner.append(draw(flux, OTHER))))
    assert same(outputs, expected)
    assert all(same(one, other) for one in inner)
    assert len(report.steps) == 6


@pytest.mark.parametrize("first_to_end", ["opened first", "opened last"])
def test_sessions_of_two_threads_that_overlap(flux, first_to_end):
    """The hooks stay on until the last of them has ended, and no longer."""
    long, short = Job(steps=6), Job(seeds=(3,), steps=2)
    expected = draw_cached(flux, OPTIONS, long)
    go, done = threading.Event(), threading.Event()
    begun = threading.Event()

    def quick() -> None:
        with cache_session(flux, {"type": "FBCache"}):
            begun.set()
            assert go.wait(60)
            draw(flux, short)
        done.set()

    thread = threading.Thread(target=quick)
    if first_to_end == "opened first":
        thread.start()
        assert begun.wait(60)

    def at(step: int) -> None:
        if step == 1 and first_to_end == "opened last":
            thread.start()
        if step == 3:
            go.set()
            assert done.wait(60)

    with cache_session(flux, OPTIONS) as report:
        outputs = draw(flux, long, on_step=at)
    thread.join()
    assert same(outputs, expected[0])
    assert report.to_dict() == expected[1].to_dict()
    assert attachment_of(flux) is None


def test_taking_the_cache_off_one_pipeline_while_another_draws(pipe, alone, folder):
    """It was put on with the first pipeline's cache, and stays until the second one's image is done."""
    first = apply_cache_on_pipe(FluxPipeline(**load(folder).components | {"transformer": pipe.transformer}), "FBCache")
    apply_cache_on_pipe(pipe, **flux_pipe.DBCACHE)

    def callback(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 3:
            remove_cache(first)
        return {}

    assert torch.equal(flux_pipe.draw(pipe, callback_on_step_end=callback), alone)
    assert len(cache_reports(pipe)["transformer"].steps) == STEPS
    assert attachment_of(pipe.transformer) is None


def test_names_of_contexts_are_a_threads_own(flux):
    latents, static = JOB.start(), JOB.static()
    with torch.no_grad(), cache_session(flux, OPTIONS) as report, flux.cache_context("mine"):
        for step in range(3):
            context = flux.cache_context("other")
            in_thread(context.__enter__)
            flux(hidden_states=latents, timestep=JOB.timestep(step), return_dict=False, **static)
            in_thread(lambda context=context: context.__exit__(None, None, None))
    assert [(step.branch, step.step) for step in report.steps] == [("mine", k) for k in range(3)]


@pytest.mark.slow
def test_compiled_blocks_stay_compiled():
    """A session on the module inside, opened and closed meanwhile, changes nothing for the job that draws."""
    graphs: list[torch.fx.GraphModule] = []
    torch._dynamo.reset()
    flux = tiny_flux(1, 1)
    compiled = torch.compile(flux, backend=lambda graph, _: graphs.append(graph) or graph.forward)

    def between(step: int) -> None:
        if step == 3:
            with cache_session(flux, {"type": "FBCache"}):
                pass

    with cache_session(compiled, OPTIONS) as report:
        draw(compiled, Job(steps=3))
        made = len(graphs)
        attachment = attachment_of(flux)
        compiled_forwards = [hook.compiled for hook in attachment._hooks]
        draw(compiled, Job(steps=5), on_step=between)
        assert [hook.compiled for hook in attachment._hooks] == compiled_forwards
    assert made == len(graphs) > 0
    assert len(report.steps) == 8
