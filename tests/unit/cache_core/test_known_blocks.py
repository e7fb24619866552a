"""What a session found out of a block's memory holds for the next one, until the block's code is another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cache_core import buffers, cache_session, job_session
from tests.helpers.joined import Drawing, call_together
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, tiny_flux
from tests.helpers.wrappers import by_turns

OPTIONS = {
    "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "warmup_steps": 1,
    "residual_diff_threshold": 0.3,
}  # fmt: skip
JOB = Job(pace=0.2, steps=8)


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was copied to be compared or kept."""
    copied: list[Any] = []
    copies = buffers._copies
    monkeypatch.setattr(buffers, "_copies", lambda values: copied.extend(values) or copies(values))
    return copied


def test_a_second_image_costs_no_copies(copied):
    flux = tiny_flux()
    first, _ = draw_cached(flux, OPTIONS, JOB)
    assert copied
    copied.clear()
    second, _ = draw_cached(flux, OPTIONS, JOB)
    assert not copied
    assert all(map(torch.equal, first, second))


def test_another_shape_is_looked_at_again(copied):
    flux = tiny_flux()
    draw_cached(flux, OPTIONS, JOB)
    copied.clear()
    draw_cached(flux, OPTIONS, Job(seeds=(1, 2), pace=0.2, steps=8))
    assert copied


def _scribbling(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Writes into its input unseen by the version counter, as a fused kernel does."""

    def fused(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = forward(hidden_states, *args, **kwargs)
        hidden_states.data.mul_(0.5)
        return output

    return fused


class _Scribbler(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _scribbling(self.norm)(*args, **kwargs)


class _Processor:
    def __init__(self, given: Any) -> None:
        self.given = given

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        output = self.given(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        image_rotary_emb[0].data.mul_(0.5)
        return output


def _block_forward(flux: nn.Module) -> None:
    block = flux.single_transformer_blocks[2]
    forward = block.forward

    def fused(hidden_states: Any, encoder_hidden_states: Any, **kwargs: Any) -> Any:
        output = forward(hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs)
        hidden_states.data.mul_(0.5)
        return output

    block.forward = fused


def _inner_forward(flux: nn.Module) -> None:
    norm = flux.transformer_blocks[1].norm1
    norm.forward = _scribbling(norm.forward)


def _inner_module(flux: nn.Module) -> None:
    block = flux.transformer_blocks[1]
    block.norm1 = _Scribbler(block.norm1)


@pytest.mark.slow
@pytest.mark.parametrize("change", [_block_forward, _inner_forward, _inner_module])
def test_other_code_is_looked_at_again(change):
    """After a clean image, a block that writes in place is found out as in the first image of all."""
    expected, known = tiny_flux(), tiny_flux()
    draw_cached(known, OPTIONS, JOB)
    change(expected)
    change(known)
    images, report = draw_cached(expected, OPTIONS, JOB)
    again, other = draw_cached(known, OPTIONS, JOB)
    assert all(map(torch.equal, images, again))
    assert decisions(report) == decisions(other)


def test_another_processor_is_looked_at_again():
    flux = tiny_flux()
    draw_cached(flux, OPTIONS, JOB)
    attention = flux.transformer_blocks[1].attn
    attention.set_processor(_Processor(attention.processor))
    with (
        pytest.raises(RuntimeError, match=r"transformer_blocks\.1 writes into an argument other than"),
        cache_session(flux, OPTIONS),
    ):
        draw(flux, JOB)


def test_what_a_block_does_is_remembered(copied):
    """One that writes in place gets copies in the next session from its first run on."""
    flux = tiny_flux()
    _block_forward(flux)
    first, _ = draw_cached(flux, OPTIONS, JOB)
    copied.clear()
    second, report = draw_cached(flux, OPTIONS, JOB)
    assert 0 < len(copied) <= 2 * len(report.steps)  # both streams of that block, where it ran
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("images", [1, 2, 5])
def test_short_jobs_do_not_make_a_block_trusted(images: int):
    """Two runs do not show that memory comes by turns, however often they are two."""
    flux = tiny_flux()
    flux.transformer_blocks[0].forward = by_turns(flux.transformer_blocks[0].forward)
    for _ in range(images):
        draw_cached(flux, OPTIONS, Job(pace=0.2, steps=2))
    with pytest.raises(RuntimeError, match="alternates between outputs"):
        draw_cached(flux, OPTIONS, JOB)


def test_jobs_in_joined_calls_cost_no_copies_after_the_first(copied):
    """Each joined call is one step of every job in it."""
    flux = tiny_flux()
    counts = []
    with job_session(flux, OPTIONS, name="a") as a, job_session(flux, OPTIONS, name="b") as b:
        jobs = [Drawing(JOB, session, JOB.start()) for session in (a, b)]
        for _ in range(3):
            copied.clear()
            call_together(flux, jobs)
            counts.append(len(copied))
    assert counts[0]
    assert counts[1:] == [0, 0]


def test_a_block_that_is_trusted_may_still_not_write_into_its_input():
    flux = tiny_flux()
    writes = False
    forward = flux.transformer_blocks[0].forward

    def patched(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(hidden_states=hidden_states, **kwargs)
        return output if not writes else (hidden_states.zero_(), output)[1]

    flux.transformer_blocks[0].forward = patched
    draw_cached(flux, OPTIONS, JOB)
    writes = True
    with pytest.raises(RuntimeError, match="wrote into its input in place"):
        draw_cached(flux, OPTIONS, JOB)


def test_nothing_is_kept_alive():
    flux = tiny_flux()
    _inner_forward(flux)
    draw_cached(flux, OPTIONS, JOB)
    block = weakref.ref(flux.transformer_blocks[1])
    del flux
    gc.collect()
    assert block() is None
