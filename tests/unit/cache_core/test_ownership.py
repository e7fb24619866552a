"""A session belongs to the pipeline call that opened it: what else calls its transformer meanwhile is not its job's.

Every image is compared, bit for bit, with the one that its pipeline draws alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.callbacks import PipelineCallback

from cache_core import NoCacheOptions, apply_cache_on_pipe, cache_reports, cache_session, remove_cache
from tests.helpers.flux_pipe import DBCACHE, STEPS, draw, load
from tests.helpers.sharing import Callback, at_step, encoding_alone, sharing, square


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, torch.Tensor]:
    """Both images, cached and not, each drawn by a pipeline that nobody disturbs."""
    images = {}
    for name, function in (("circle", draw), ("square", square)):
        images[f"{name}, plain"] = function(load(folder))
        images[name] = function(pipe := apply_cache_on_pipe(load(folder), **DBCACHE))
        assert any(i.cached for s in cache_reports(pipe)["transformer"].steps for i in s.images)
        assert not torch.equal(images[name], images[f"{name}, plain"]), "the test could not fail"
    return images


@pytest.fixture
def cached(pipe) -> FluxPipeline:
    return apply_cache_on_pipe(pipe, **DBCACHE)


def steps(pipe: FluxPipeline) -> list[int]:
    return [step.step for step in cache_reports(pipe)["transformer"].steps]


class _Object(PipelineCallback):
    """diffusers' own kind of step callback."""

    def __init__(self, what: Callable[[], Any]) -> None:
        self.what = what

    tensor_inputs: list[str] = []  # noqa: RUF012 (as diffusers declares it)

    def callback_fn(self, pipe: Any, now: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        return at_step(self.what)(pipe, now, time, state)

    def __call__(self, *arguments: Any) -> dict[str, Any]:
        return self.callback_fn(*arguments)


KINDS: dict[str, Callable[[Callable[[], Any]], Callback]] = {
    "function": at_step,
    "partial": lambda what: functools.partial(lambda call, *arguments: call(*arguments), at_step(what)),
    "method": lambda what: _Object(what).callback_fn,
    "diffusers' class": _Object,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "kind"),
    [("pipeline", "function"), ("its own class", "function"), *(("transformer", kind) for kind in KINDS)],
)
def test_what_a_step_callback_draws(cached, alone, other, kind):
    """A preview, a safety re-draw: computed as without a cache, counted nowhere."""
    second, seen, drawn = sharing(cached), [], []
    handle = cached.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )

    def once_more() -> torch.Tensor:
        args, kwargs = seen[0]
        return cached.transformer(*args, **kwargs)[0]

    foreign = {
        "pipeline": lambda: square(second),
        "its own class": lambda: square_by_class(cached),
        "transformer": once_more,
    }[other]
    assert torch.equal(draw(cached, callback_on_step_end=KINDS[kind](lambda: drawn.append(foreign()))), alone["circle"])
    assert steps(cached) == list(range(STEPS))
    handle.remove()
    remove_cache(cached)
    with torch.no_grad():
        assert torch.equal(drawn[0], once_more() if other == "transformer" else alone["square, plain"])


def square_by_class(pipe: FluxPipeline) -> torch.Tensor:
    """The same pipeline object past its cache. Its scheduler is put back, as whoever does this must."""
    own, pipe.scheduler = pipe.scheduler, type(pipe.scheduler).from_config(pipe.scheduler.config)
    try:
        return square(functools.partial(FluxPipeline.__call__, pipe))
    finally:
        pipe.scheduler = own


@pytest.mark.slow
def test_a_preview_in_every_step(cached, alone):
    """Also within the warm-up, and when the image is cached already."""
    second, previews = sharing(cached), []

    def preview(*_: Any) -> dict[str, Any]:
        previews.append(square(second))
        return {}

    assert torch.equal(draw(cached, callback_on_step_end=preview), alone["circle"])
    assert all(torch.equal(image, alone["square, plain"]) for image in previews)
    assert steps(cached) == list(range(STEPS))


def test_what_a_scheduler_asks_of_the_transformer(cached, alone, monkeypatch):
    """Neither a callback nor a pipeline, and yet not the denoising call."""
    step, asked = cached.scheduler.step, []

    def with_a_look_ahead(noise: torch.Tensor, time: Any, latents: torch.Tensor, **more: Any) -> Any:
        args, kwargs = seen[-1]
        asked.append(cached.transformer(*args, **kwargs)[0])
        return step(noise, time, latents, **more)

    seen: list[Any] = []
    cached.transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    monkeypatch.setattr(cached.scheduler, "step", with_a_look_ahead)
    assert torch.equal(draw(cached), alone["circle"])
    assert len(asked) == STEPS == len(steps(cached))


def test_a_call_inside_a_call(cached, alone):
    """A block that asks its own transformer: two calls of one session would run into each other."""
    inner: list[torch.Tensor] = []
    seen: list[Any] = []

    def ask(*_: Any) -> None:
        if len(inner) < 1 and len(seen) == 4:
            inner.append(torch.empty(0))
            inner[0] = cached.transformer(*seen[3][0], **seen[3][1])[0]

    cached.transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    cached.transformer.transformer_blocks[0].norm1.register_forward_pre_hook(ask)
    assert torch.equal(draw(cached), alone["circle"])
    assert inner[0].numel()
    assert steps(cached) == list(range(STEPS))


@pytest.mark.parametrize("second_cached", [False, True])
def test_a_second_pipeline_in_another_thread(cached, alone, second_cached):
    """Step by step in turn, so that every call of one falls between two of the other."""
    second = encoding_alone(sharing(encoding_alone(cached)))
    if second_cached:
        apply_cache_on_pipe(second, **DBCACHE)
    turn, images = threading.Barrier(2, timeout=60), {}

    def in_turn(*_: Any) -> dict[str, Any]:
        turn.wait()
        return {}

    thread = threading.Thread(target=lambda: images.update(square=square(second, callback_on_step_end=in_turn)))
    thread.start()
    images["circle"] = draw(cached, callback_on_step_end=in_turn)
    thread.join()
    assert torch.equal(images["circle"], alone["circle"])
    assert torch.equal(images["square"], alone["square" if second_cached else "square, plain"])
    assert steps(cached) == list(range(STEPS))
    assert not second_cached or steps(second) == list(range(STEPS))


@pytest.mark.slow
def test_threads_that_draw_as_they_please(folder):
    """Branches too are told apart by thread: the name of an open cache context is its thread's alone."""
    guided = {"true_cfg_scale": 2.0, "negative_prompt": "a green triangle"}
    expected = draw(apply_cache_on_pipe(load(folder), **DBCACHE), **guided)
    first = apply_cache_on_pipe(load(folder), **DBCACHE)
    pipes = [first, apply_cache_on_pipe(sharing(first), **DBCACHE), sharing(first)]
    for pipe in pipes:
        encoding_alone(pipe)
    images: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda k=k, pipe=pipe: images.update({k: draw(pipe, **guided)}))
        for k, pipe in enumerate(pipes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(images[0], expected)
    assert torch.equal(images[1], expected)
    assert torch.equal(images[2], draw(load(folder), **guided))
    for pipe in pipes[:2]:
        records = cache_reports(pipe)["transformer"].steps
        assert [(s.branch, s.step) for s in records] == [(b, k) for k in range(STEPS) for b in ("cond", "uncond")]


@pytest.mark.parametrize("same", [True, False], ids=["the same pipeline", "another"])
def test_a_cached_preview_has_a_session_of_its_own(cached, alone, same):
    """Also the very same pipeline; when both are done, its reports are those of the call that ended last."""
    second = cached if same else apply_cache_on_pipe(sharing(cached), **DBCACHE)
    drawn: list[Any] = []

    def preview() -> None:
        own, second.scheduler = second.scheduler, type(second.scheduler).from_config(second.scheduler.config)
        drawn.extend((square(second), steps(second)))
        second.scheduler = own

    assert torch.equal(draw(cached, callback_on_step_end=at_step(preview)), alone["circle"])
    assert torch.equal(drawn[0], alone["square"])
    assert drawn[1] == steps(cached) == list(range(STEPS))


def test_a_refused_second_call_leaves_the_running_ones_report(cached, alone):
    lengths = []

    def refused() -> None:
        with (
            cache_session(cached.transformer, NoCacheOptions()),
            pytest.raises(RuntimeError, match="already open on this transformer"),
        ):
            draw(cached)
        lengths.append(len(steps(cached)))

    assert torch.equal(draw(cached, callback_on_step_end=at_step(refused)), alone["circle"])
    assert lengths == [4]
    assert steps(cached) == list(range(STEPS))


@pytest.mark.slow
def test_a_second_call_that_fails_leaves_the_running_ones_report(cached, alone):
    def raising() -> None:
        with pytest.raises(ValueError, match="prompt"):
            draw(cached, prompt=None)

    assert torch.equal(draw(cached, callback_on_step_end=at_step(raising)), alone["circle"])
    assert steps(cached) == list(range(STEPS))


def test_one_module_in_both_parts(cached, alone):
    """As ``transformer`` and ``transformer_2``: one session, counted once."""
    cached.transformer_2 = cached.transformer
    assert torch.equal(draw(cached), alone["circle"])
    assert {name: len(report.steps) for name, report in cache_reports(cached).items()} == {"transformer": STEPS}


class _Redraws(FluxPipeline):
    """A pipeline that looks at a draft by another one, draws, and draws again."""

    helper: FluxPipeline
    drawn: list[torch.Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.drawn = [square(self.helper)]
        state = kwargs["generator"].get_state()
        self.drawn.append(super().__call__(*args, **kwargs).images)
        self.drawn.append(square(self.helper))
        kwargs["generator"].set_state(state)
        return super().__call__(*args, **kwargs)


def test_a_pipeline_that_draws_twice_and_asks_another(pipe, alone):
    """Its second image begins anew: nothing of the first is reused. The other pipeline is never cached."""
    redraws = _Redraws(**pipe.components)
    redraws.set_progress_bar_config(disable=True)
    redraws.helper = sharing(pipe)
    assert torch.equal(draw(apply_cache_on_pipe(redraws, **DBCACHE)), alone["circle"])
    before, first, after = redraws.drawn
    assert torch.equal(first, alone["circle"])
    assert torch.equal(before, alone["square, plain"])
    assert torch.equal(after, alone["square, plain"])
    assert steps(redraws) == [*range(STEPS), *range(STEPS)]
