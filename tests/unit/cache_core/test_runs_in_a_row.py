"""Runs of a block that do not follow each other show nothing of its memory, whatever came between them.

A block here keeps one buffer, which it lets go of for another shape: only runs in a row return the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from cache_core import job_session
from tests.helpers.joined import Drawing, OutOfMemory, call_together
from tests.helpers.tiny_flux import Job, decisions, draw_cached, tiny_flux

PRUNE = {
    "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 1,
    "residual_diff_threshold": 0.14,
}  # fmt: skip
EIGHT = Job(pace=0.2, steps=8)
ONE, TWO = Job(pace=0.2, steps=1), Job(seeds=(1, 2), pace=0.2, steps=1)


class Grown:
    """A block's forward with one buffer. ``full``: it fails after it has used the buffer."""

    def __init__(self, forward: Callable[..., Any], buffered: bool) -> None:
        self.forward, self.buffered, self.full, self.buffer = forward, buffered, False, torch.empty(0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        encoder, hidden = self.forward(*args, **kwargs)
        if self.buffered and self.buffer.shape != hidden.shape:
            self.buffer = torch.empty_like(hidden)
        out = self.buffer.copy_(hidden) if self.buffered else hidden
        if self.full:
            raise torch.OutOfMemoryError
        return encoder, out


class Slotted:
    """Has no weak reference, so that the block's code is not recognised."""

    __slots__ = ("forward",)

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def _flux(buffered: bool, slotted: bool = False) -> Any:
    flux = tiny_flux()
    block: Any = flux.transformer_blocks[0]
    flux.grown = block.forward = Grown(block.forward, buffered)
    if slotted:
        block.norm1.forward = Slotted(block.norm1.forward)
    return flux


@pytest.mark.parametrize("before", [[], [ONE], [ONE] * 6, [ONE, TWO], [ONE, TWO] * 6])
def test_jobs_before(before: list[Job]):
    flux = _flux(buffered=True)
    for job in before:
        draw_cached(flux, PRUNE, job)
    for _ in range(2):
        images, report = draw_cached(flux, PRUNE, EIGHT)
        expected, other = draw_cached(_flux(buffered=False), PRUNE, EIGHT)
        assert all(map(torch.equal, images, expected))
        assert decisions(report) == decisions(other)


#: By name: the cache's options, the seed and the side of the image. An upper-case name is of another size.
JOBS = {"a": (PRUNE, 1, 4), "b": (PRUNE, 5, 4), "B": (PRUNE, 5, 6), "N": ({"type": "none"}, 5, 6)}


def _drawn(flux: Any, calls: Sequence[str]) -> Iterator[torch.Tensor]:
    """What the jobs drew in joined calls of those named; one with ``!`` runs out of memory in the block, ``+`` puts a
    module into it."""
    with ExitStack() as stack:
        jobs: dict[str, Drawing] = {}
        for call in calls:
            if call == "+":
                flux.transformer_blocks[0].put = nn.Identity()
                continue
            names = call.rstrip("!")
            for name in names:
                if name not in jobs:
                    options, seed, side = JOBS[name]
                    job = Job(seeds=(seed,), pace=0.2, steps=60, side=side)
                    session = stack.enter_context(job_session(flux, options, name=name))
                    jobs[name] = Drawing(job, session, job.start())
            flux.grown.full = call.endswith("!")
            with pytest.raises(torch.OutOfMemoryError) if flux.grown.full else nullcontext():
                call_together(flux, [jobs[name] for name in names])
        for job in jobs.values():
            yield from job.outputs


BETWEEN = {
    "joined": ["a", "ab"],
    "another size": ["a", "B"],
    "without a method": ["a", "N"],
    "failed": ["a", "ab!"],
}


@pytest.mark.parametrize("slotted", [False, True])
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("times", [1, 6])
def test_calls_between(between: str, times: int, slotted: bool):
    calls = [*BETWEEN[between] * times, *"aaaaaa"]
    drawn, expected = (list(_drawn(_flux(buffered, slotted), calls)) for buffered in (True, False))
    assert len(drawn) == len(expected) >= 7
    assert all(map(torch.equal, drawn, expected))


def test_a_job_that_began_before_a_module_was_put_into_the_block():
    """As a LoRA's layers are: that job and later ones know different things about the block."""
    calls = ["a", "+", *["B", "a"] * 6, *"aaaaaa"]
    drawn, expected = (list(_drawn(_flux(buffered), calls)) for buffered in (True, False))
    assert all(map(torch.equal, drawn, expected))


def _halved() -> Any:
    """The transformer halves, unseen by version counters, what its first block returned."""

    def halve(_block: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["hidden_states"].data.mul_(0.5)

    flux = tiny_flux()
    flux.transformer_blocks[1].register_forward_pre_hook(halve, with_kwargs=True)
    return flux


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_a_first_step_without_memory_hides_nothing(alone: bool):
    """Wherever the memory ended: also between a block's run and the look at what became of its output."""
    options = PRUNE | {"Fn_compute_blocks": 0}

    def draw(flux: Any, steps: int) -> list[torch.Tensor]:
        if alone:
            return draw_cached(flux, options, Job(pace=0.2, steps=steps))[0]
        with job_session(flux, options, name="a") as session:
            job = Drawing(EIGHT, session, EIGHT.start())
            for _ in range(steps):
                call_together(flux, [job])
            return job.outputs

    expected, failed = draw(_halved(), 8), 0
    for operations in range(0, 800, 8):
        flux = _halved()
        try:
            with OutOfMemory(operations):
                draw(flux, 1)
        except torch.OutOfMemoryError:
            failed += 1
        assert all(map(torch.equal, draw(flux, 8), expected)), operations
    assert failed > 50
