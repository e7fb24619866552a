"""What blocks, patched or fused, do to memory: the images and decisions are those of the same arithmetic in tensors of
its own, or an error names the block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cache_core import CacheReport, cache_session
from tests.helpers.tiny_flux import Job, decisions, differences, draw, draw_cached, tiny_flux
from tests.helpers.wrappers import by_turns

METHODS = {
    "DBCache": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "warmup_steps": 1, "residual_diff_threshold": 0.3},
    "Bn": {
        "Fn_compute_blocks": 2,
        "Bn_compute_blocks": 3,
        "Bn_compute_blocks_ids": [0],
        "warmup_steps": 2,
        "residual_diff_threshold": 0.4,
    },
    "DBPrune": {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "warmup_steps": 1, "residual_diff_threshold": 0.12},
    "taylor": {
        "Fn_compute_blocks": 0,
        "Bn_compute_blocks": 0,
        "warmup_steps": 3,
        "residual_diff_threshold": 0.12,
        "taylor_order": 1,
    },
}
KINDS = {"Bn": "DBCache", "taylor": "DBPrune"}
JOBS = {"one": Job(pace=0.2, steps=8), "two": Job(seeds=(0, 5), pace=0.2, steps=8)}
MODES = {"two": torch.no_grad, "one": torch.inference_mode}
Forward = Callable[..., Any]


def _options(method: str) -> dict[str, Any]:
    return {"type": KINDS.get(method, method), **METHODS[method]}


def _blocks(flux: nn.Module) -> list[nn.Module]:
    return [*flux.transformer_blocks, *flux.single_transformer_blocks]


def _write(target: torch.Tensor, value: torch.Tensor, how: str) -> None:
    if how == "copy_":
        target.copy_(value)
    elif how == "data":  # the version counter does not see it, as with a kernel of one's own
        target.data.copy_(value)
    else:
        target.numpy()[...] = value.numpy()


def _in_place(how: str) -> Callable[[Forward], Forward]:
    """Writes what it adds into its inputs, and returns those."""

    def patch(forward: Forward) -> Forward:
        def fused(hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
            encoder, hidden = forward(
                hidden_states=hidden_states.clone(), encoder_hidden_states=encoder_hidden_states.clone(), **kwargs
            )
            _write(hidden_states, hidden, how)
            _write(encoder_hidden_states, encoder, how)
            return encoder_hidden_states, hidden_states

        return fused

    return patch


def _scratch(forward: Forward) -> Forward:
    """Normalizes in place and returns other tensors."""

    def fused(hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        output = forward(
            hidden_states=hidden_states.clone(), encoder_hidden_states=encoder_hidden_states.clone(), **kwargs
        )
        hidden_states.mul_(0.5)
        encoder_hidden_states.zero_()
        return output

    return fused


def _static(buffers: dict[Any, torch.Tensor]) -> Callable[[Forward], Forward]:
    """Returns the same memory at every run, as a replayed CUDA graph does."""

    def patch(forward: Forward) -> Forward:
        own = {} if buffers is None else buffers

        def replayed(*args: Any, **kwargs: Any) -> Any:
            results = []
            for i, value in enumerate(forward(*args, **kwargs)):
                buffer = own.setdefault((i, value.shape), torch.empty(value.shape))
                results.append(buffer.copy_(value).view(value.shape))
            return tuple(results)

        return replayed

    return patch


PATCHES: dict[str, Callable[[], Callable[[Forward], Forward]]] = {
    "in place": lambda: _in_place("copy_"),
    "in place, unseen": lambda: _in_place("data"),
    "in place, by numpy": lambda: _in_place("numpy"),
    "scratch": lambda: _scratch,
    "static": lambda: _static(None),
    "one buffer for all": lambda: _static({}),
}


def _patched(patch: Callable[[Forward], Forward]) -> nn.Module:
    flux = tiny_flux()
    for block in _blocks(flux):
        block.forward = patch(block.forward)
    return flux


@functools.cache
def _unpatched(method: str, job: str) -> tuple[list[torch.Tensor], CacheReport]:
    return draw_cached(tiny_flux(), _options(method), JOBS[job])


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_what_a_block_does_to_memory_changes_nothing(method, patch, job):
    expected, told = _unpatched(method, job)
    assert any(cached or pruned for cached, _, pruned in decisions(told)), "something must be reused"
    with MODES[job]():
        outputs, report = draw_cached(_patched(PATCHES[patch]()), _options(method), JOBS[job])
    assert decisions(report) == decisions(told)
    assert differences(report) == differences(told)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", METHODS)
def test_the_transformer_adds_into_what_a_block_returned(method, mode):
    """As some do with ControlNet's residuals."""

    def adding(in_place: bool) -> nn.Module:
        flux = tiny_flux()

        def add(_block: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = kwargs["hidden_states"]
            return args, kwargs | {"hidden_states": hidden.add_(0.02) if in_place else hidden + 0.02}

        for block in _blocks(flux)[1:]:
            block.register_forward_pre_hook(add, with_kwargs=True)
        return flux

    expected, told = draw_cached(adding(False), _options(method), JOBS["one"])
    assert any(cached or pruned for cached, _, pruned in decisions(told))
    with mode():
        outputs, report = draw_cached(adding(True), _options(method), JOBS["one"])
    assert decisions(report) == decisions(told)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def _writes_into_temb(forward: Forward) -> Forward:
    def patched(*args: Any, temb: torch.Tensor, **kwargs: Any) -> Any:
        return forward(*args, temb=temb.data.add_(0.1), **kwargs)

    return patched


def _later(forward: Forward) -> Forward:
    runs: list[int] = []

    def patched(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        runs.append(1)
        output = forward(hidden_states=hidden_states, **kwargs)
        if len(runs) > 1:
            hidden_states.zero_()
        return output

    return patched


REFUSED = {
    "writes into an argument other than its two streams": _writes_into_temb,
    "alternates between outputs in the same memory": by_turns,
    "wrote into its input in place, which it did not do when it first ran": _later,
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_kept_up_with_is_refused_by_name(message):
    flux = tiny_flux()
    flux.transformer_blocks[0].forward = REFUSED[message](flux.transformer_blocks[0].forward)
    with pytest.raises(RuntimeError, match=rf"block transformer_blocks\.0 {message}"):
        draw_cached(flux, _options("DBCache"), JOBS["one"])


@pytest.mark.slow
@pytest.mark.parametrize("patch", [*REFUSED.values(), _in_place("data"), _static({})])
def test_without_a_method_nothing_is_kept_and_nothing_is_refused(patch):
    first, second = (tiny_flux() for _ in range(2))
    for flux in (first, second):
        flux.transformer_blocks[0].forward = patch(flux.transformer_blocks[0].forward)
    outputs, _ = draw_cached(first, {"type": "none"}, JOBS["one"])
    assert all(torch.equal(a, b) for a, b in zip(outputs, draw(second, JOBS["one"]), strict=True))


def test_blocks_that_behave_get_no_copies_after_their_first_run(monkeypatch):
    import cache_core.buffers as buffers

    steps, copied = [0], []

    def counted(values: Any) -> Any:
        copied.append(steps[-1])
        return copies(values)

    copies = buffers._copies
    monkeypatch.setattr(buffers, "_copies", counted)
    with cache_session(flux := tiny_flux(), _options("DBPrune")):
        draw(flux, JOBS["one"], on_step=steps.append)
    assert copied
    assert set(copied) == {0}
