"""What is held between steps and within one, to the byte, as a list written down by hand: no more is needed.

``h`` is one image's image stream, ``e`` its text stream; tiny FLUX has 3 double and 5 single blocks. Double blocks
compare the image stream, single blocks both.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from tests.helpers.tiny_flux import Job, draw, opened, tiny_flux
from tests.helpers.told import answered

MODEL = tiny_flux()
H, E = 16 * 64 * 4, 4 * 64 * 4  # 16 image and 4 text tokens of 64 channels, float32
BLOCKS = [*MODEL.transformer_blocks, *MODEL.single_transformer_blocks]
NORMS = [*(b.norm1 for b in MODEL.transformer_blocks), *(b.norm for b in MODEL.single_transformer_blocks)]
ALL = {"type": "DBPrune", "Fn_compute_blocks": 0, "Bn_compute_blocks": 0, "warmup_steps": 2}
DUAL = {"type": "DBCache", "Fn_compute_blocks": 1, "warmup_steps": 2}


def _held(tensors: Any) -> int:
    """Bytes behind tensors, every storage once; sums are no more than numbers."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel() > 1}
    return sum(storages.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "h", "e"),
    [
        # The states between the blocks once each, the text a double block added, and what the last block added.
        pytest.param(ALL, 3 + 5 + 1, 3 + 5 + 1, id="DBPrune, all"),
        # Blocks 1..5 in a row: two doubles, three singles. What the last of them added is kept, not what it gave.
        pytest.param({**ALL, "Fn_compute_blocks": 1, "Bn_compute_blocks": 2}, 2 + 3 + 1, 2 + 3 + 1, id="DBPrune, F1B2"),
        # Alone, a double block keeps its input's image stream and both residuals, a single block both streams twice.
        pytest.param({**ALL, "non_prune_blocks_ids": (0, 2, 4, 6)}, 2 + 3 * 2, 1 + 3 * 2, id="DBPrune, every second"),
        # With a forecast each block keeps input and residual for itself; two steps of warm-up are two samples.
        pytest.param({**ALL, "taylor_order": 1}, 8 * 3, 3 * 2 + 5 * 3, id="DBPrune, order 1"),
        # Reference and one residual over the whole middle.
        pytest.param({**DUAL, "Bn_compute_blocks": 1}, 1 + 1, 1, id="DBCache"),
        pytest.param({**DUAL, "Bn_compute_blocks": 1, "taylor_order": 1}, 1 + 2, 2, id="DBCache, order 1"),
        # All but the last of Bn are compared: 1 and 2 are doubles, 3..6 singles. No middle is left.
        pytest.param(
            {**DUAL, "Bn_compute_blocks": 7, "Bn_compute_blocks_ids": (6,)}, 1 + 6 * 2, 2 + 4 * 2, id="DBCache, Bn"
        ),
        pytest.param({"type": "none"}, 0, 0, id="none"),
    ],
)
@pytest.mark.parametrize("images", [1, 3])
def test_after_warmup(options, h, e, images):
    with opened(MODEL, options) as session:
        draw(MODEL, Job(seeds=tuple(range(images)), steps=2))
        assert _held(session.tensors()) == images * (h * H + e * E)
        assert session.bytes_held() == _held(session.tensors())


def test_two_branches_hold_twice_as_much():
    with opened(MODEL, ALL) as session:
        for branch in ("cond", "uncond"):
            with MODEL.cache_context(branch):
                draw(MODEL, Job(steps=2))
        assert session.bytes_held() == 2 * 9 * (H + E)


def test_within_a_step():
    """Before block ``b`` of the last warm-up step runs: the states so far, and the text that double blocks added."""
    seen: list[int] = []
    handles: list[Any] = []
    with opened(MODEL, ALL) as session:

        def on_step(step: int) -> None:
            if step == 1:
                _forget(session)
                hook = lambda *_: seen.append(session.bytes_held())  # noqa: E731
                handles.extend(norm.register_forward_pre_hook(hook) for norm in NORMS)

        try:
            draw(MODEL, Job(steps=2), on_step=on_step)
        finally:
            for handle in handles:
                handle.remove()
    # Between the stacks the text stream changes hands: the first single block's own input is both streams.
    states = [(0, 0), (2, 1), (3, 2), (4, 3), (5, 3 + 2), (6, 3 + 3), (7, 3 + 4), (8, 3 + 5)]
    assert seen == [h * H + e * E for h, e in states]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("options", [{**DUAL, "Bn_compute_blocks": 3, "Bn_compute_blocks_ids": (2,)}, ALL])
def test_what_is_replaced_is_not_kept_until_the_call_is_over(options, order):
    """In case it fails: that would be a second copy of everything, at the moment when memory is short."""
    before: list[weakref.ref[torch.Tensor]] = []
    sizes: list[int] = []
    with answered(lambda *_: (9.0, 1.0)), opened(MODEL, {**options, "taylor_order": order}) as session:

        def on_step(_: int) -> None:
            before[:] = [weakref.ref(t) for t in session.tensors()]
            sizes.append(session.bytes_held())

        def look(*_: Any) -> None:
            held = {id(tensor) for tensor in session.tensors()}
            assert all(own() is None or id(own()) in held for own in before)
            assert len(sizes) < 4 or session.bytes_held() <= sizes[-1] + H + E

        handles = [norm.register_forward_pre_hook(look) for norm in NORMS]
        try:
            draw(MODEL, Job(steps=5), on_step=on_step)
        finally:
            for handle in handles:
                handle.remove()
    assert sizes[-1] == sizes[-2] > 0


def _forget(session: Any) -> None:
    """As after a step that was left unfinished."""
    for branch in session._branches.values():
        branch.forget()
    assert session.bytes_held() == 0


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize(
    "options", [ALL, {**DUAL, "Bn_compute_blocks": 1}, {**DUAL, "Bn_compute_blocks": 7, "Bn_compute_blocks_ids": (0,)}]
)
def test_what_leaves_the_blocks_is_not_held(options, steps):
    """The last block's output belongs to the model, which may write to it, and to a caller who may keep it."""
    given: list[torch.Tensor] = []
    handle = BLOCKS[-1].register_forward_hook(lambda _, __, output: given.extend(output))
    try:
        with answered(lambda *_: (9.0, 1.0)), opened(MODEL, options) as session:
            draw(MODEL, Job(steps=steps))
            held = {tensor.untyped_storage().data_ptr() for tensor in session.tensors()}
            assert held
            assert not held & {tensor.untyped_storage().data_ptr() for tensor in given}
    finally:
        handle.remove()


@pytest.mark.parametrize("limit", [1, 2])
def test_nothing_is_held_once_nothing_can_be_read(limit):
    """The step that uses up the limit is the last that reads; the next one writes nothing either."""
    for options, name in ((ALL, "max_pruned_steps"), ({**DUAL, "Bn_compute_blocks": 3}, "max_cached_steps")):
        held: list[int] = []
        with answered(lambda *_: (0.0, 1.0)), opened(MODEL, {**options, name: limit}) as session:
            draw(MODEL, Job(steps=6), on_step=lambda _, s=session, h=held: h.append(s.bytes_held()))
            held.append(session.bytes_held())
        assert [size > 0 for size in held[1:]] == [False] + [True] * limit + [False] * (5 - limit), name
