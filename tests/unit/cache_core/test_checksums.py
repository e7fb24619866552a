"""Ranks that differ in one thing only send different checksums at their next look, whatever that thing is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cache_core import cache_session
from cache_core.consensus import checksum16
from tests.helpers.tiny_flux import Job, draw, opened, tiny_flux
from tests.helpers.told import answered, told

MODEL = tiny_flux()
BLOCKS = [*MODEL.transformer_blocks, *MODEL.single_transformer_blocks]
TWO = Job(seeds=(1, 2), steps=6)
CPU = torch.device("cpu")
DBCACHE = {
    "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,), "warmup_steps": 2,
}  # fmt: skip
DBPRUNE = {"type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 5, "warmup_steps": 2}


def _sent(options: dict[str, Any], *questions: str, model: Any = MODEL, branch: str = "default") -> list[int]:
    with answered(told(*questions)) as wire, cache_session(model, options), model.cache_context(branch):
        draw(model, TWO)
    return wire.checksums


def test_the_same_job_sends_the_same():
    assert _sent(DBCACHE, "10", "01") == _sent(DBCACHE, "10", "01")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "before", "one", "other"),
    [
        pytest.param(DBCACHE, (), "10", "01", id="Fn, which image"),
        pytest.param(DBCACHE, (), "11", "10", id="Fn, the second image"),
        pytest.param(DBCACHE, ("11",), "10", "01", id="Bn, which image"),
        pytest.param(DBCACHE, ("11",), "11", "10", id="Bn, the second image"),
        pytest.param(DBCACHE, ("11",), "11", "00", id="Bn, all"),
        pytest.param(DBPRUNE, (), "10", "01", id="DBPrune, which image"),
        pytest.param(DBPRUNE, ("11",), "11", "10", id="DBPrune, a later block"),
    ],
)
def test_a_decision_shows_at_the_next_look_and_at_every_later_one(options, before, one, other):
    """Both ranks are asked the same questions at the same places afterwards, and are answered alike."""
    with answered(told(*before, one)) as first, cache_session(MODEL, options):
        draw(MODEL, TWO)
    with answered(told(*before, other)) as second, cache_session(MODEL, options):
        draw(MODEL, TWO)
    question = [k for k, asked in enumerate(first.asked) if any(asked)][len(before)]
    assert first.checksums[: question + 1] == second.checksums[: question + 1]
    later = list(zip(first.checksums[question + 1 :], second.checksums[question + 1 :], strict=False))
    assert len(later) > 3
    assert all(mine != theirs for mine, theirs in later)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "DBCache", "DBPrune"])
@pytest.mark.parametrize("what", ["options", "number of blocks", "branch"])
def test_what_a_rank_was_told_shows_at_its_first_look(method, what):
    options = {"none": {"type": "none"}, "DBCache": DBCACHE, "DBPrune": DBPRUNE}[method]
    mine = _sent(options)
    if what == "options":
        theirs = _sent({**DBCACHE, "warmup_steps": 3} if method != "DBCache" else {**DBCACHE, "taylor_order": 1})
    elif what == "number of blocks":
        theirs = _sent(options, model=tiny_flux(3, 6))
    else:
        theirs = _sent(options, branch="other")
    assert mine[0] != theirs[0]


def test_a_step_shows_where_nothing_is_ever_decided():
    """`type: none` adds nothing to the history: a rank that is a step behind is known by the step alone."""
    sent = _sent({"type": "none"})
    assert len(sent) == len(set(sent)) == TWO.steps


def test_the_place_shows():
    """Ranks that ask at different blocks of the same step, with the same history."""
    with answered(told()) as wire, opened(MODEL, {"type": "none"}) as session:

        def ask(*_: Any) -> None:
            for site in (0, 1, 2):
                session.agree(site, [None], CPU)

        handle = MODEL.transformer_blocks[1].norm1.register_forward_pre_hook(ask)
        try:
            draw(MODEL, Job(steps=1))
        finally:
            handle.remove()
    assert len(wire.checksums) == 4  # the look of every step, and three questions
    assert len(set(wire.checksums)) == 4


@pytest.mark.parametrize("options", [DBCACHE, DBPRUNE])
def test_ranks_whose_calls_failed_at_other_decisions_show_it(options):
    """The call is made again on all of them: one keeps a verdict that the other has not."""

    def sent(block: int) -> list[int]:
        raising = [False]

        def explode(*_: Any) -> None:
            if raising[0]:
                raise torch.OutOfMemoryError

        def arm(step: int) -> None:
            raising[0] = step == 3

        handle = BLOCKS[block].register_forward_pre_hook(explode)
        with answered(told()) as wire, cache_session(MODEL, options), torch.no_grad():
            latents = TWO.start()
            for step in range(TWO.steps):
                arguments = {"hidden_states": latents, "timestep": TWO.timestep(step), "return_dict": False}
                if step == 3:
                    arm(step)
                    with pytest.raises(torch.OutOfMemoryError):
                        MODEL(**arguments, **TWO.static())
                    before = len(wire.checksums)
                    arm(-1)
                MODEL(**arguments, **TWO.static())
        handle.remove()
        return wire.checksums[before:]

    early, late = sent(0), sent(7)
    assert sent(0) == early
    assert early[0] != late[0]


def test_sixteen_bits_well_spread():
    """Summed over 256 ranks they must be exact in float32 (24 bits); few bits, or few of the parts, would collide."""
    values = [checksum16("cond", step, site, history) for step in range(10) for site in range(10) for history in (0, 7)]
    assert all(0 <= value < 1 << 16 for value in values)
    assert max(values) > 1 << 15
    assert len(set(values)) >= len(values) - 3


@pytest.mark.parametrize("options", [DBCACHE, DBPRUNE, {"type": "none"}])
def test_who_asks_for_how_many(options):
    """Every look speaks for every image of the batch, asked or not: the vector on the wire has one length."""
    with answered(told("10")) as wire, cache_session(MODEL, options):
        draw(MODEL, TWO)
    assert {len(asked) for asked in wire.asked} == {2}
    assert len(wire.asked) >= TWO.steps
