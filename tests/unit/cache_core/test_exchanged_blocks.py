"""Blocks that are exchanged, wrapped or taken out after the cache was applied: the cache attaches to the new ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cache_core import UnsupportedModelError, apply_cache_on_pipe, cache_reports, cache_session, remove_cache
from tests.helpers.flux_pipe import DBCACHE, draw, load

OPTIONS = DBCACHE | {"residual_diff_threshold": 0.8}


def _saved(pipe: Any) -> int:
    return sum(step.images[0].cached for step in cache_reports(pipe)["transformer"].steps)


@pytest.fixture(scope="module")
def expected(folder) -> torch.Tensor:
    """The image of the cache alone."""
    pipe = apply_cache_on_pipe(load(folder), "DBCache", **OPTIONS)
    image = draw(pipe)
    assert _saved(pipe) > 1
    return image


class _Adapter(nn.Module):
    """What is put around a block: the model calls it, it calls the block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.scale = block, nn.Linear(1, 1)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_layer(*args, **kwargs)


EXCHANGES = {"copied": copy.deepcopy, "wrapped": _Adapter, "compiled": lambda b: torch.compile(b, backend="eager")}


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("when", ["before", "after", "inside"])
def test_a_block_is_exchanged(pipe, expected, exchange, when):
    def change(stack: nn.ModuleList, at: int) -> None:
        old = stack[at]
        stack[at] = EXCHANGES[exchange](old)
        if exchange == "copied":  # the old one's weights must not be used any more
            for parameter in old.parameters():
                parameter.data.fill_(float("nan"))

    def change_all() -> None:
        change(pipe.transformer.transformer_blocks, 0)
        change(pipe.transformer.single_transformer_blocks, 2)

    def callback(_pipe: Any, step: int, _time: Any, _tensors: Any) -> dict[str, Any]:
        if step == 2:
            change_all()
        return {}

    if when == "before":
        change_all()
    apply_cache_on_pipe(pipe, "DBCache", **OPTIONS)
    if when == "after":
        change_all()
    inside = {"callback_on_step_end": callback} if when == "inside" else {}
    assert torch.equal(draw(pipe, **inside), expected)
    assert _saved(pipe) > 1
    remove_cache(pipe)
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.transformer.modules())


@pytest.mark.slow
def test_a_block_is_exchanged_for_an_unknown_one(pipe):
    class Unknown(nn.Module):
        pass

    apply_cache_on_pipe(pipe, "DBCache", **OPTIONS)
    pipe.transformer.transformer_blocks[1] = Unknown()
    with pytest.raises(UnsupportedModelError, match=r"block transformer_blocks\.1 is a Unknown"):
        draw(pipe)


def test_blocks_are_taken_out(pipe):
    apply_cache_on_pipe(pipe, "DBCache", **OPTIONS)
    pipe.transformer.single_transformer_blocks = pipe.transformer.single_transformer_blocks[:2]
    draw(pipe)
    report = cache_reports(pipe)["transformer"]
    assert report.num_blocks == 4
    assert report.steps[0].images[0].computed_blocks == 4


def test_one_block_in_two_places_is_refused(flux):
    flux.transformer_blocks[1] = flux.transformer_blocks[0]
    with (
        pytest.raises(UnsupportedModelError, match="one block in several places"),
        cache_session(flux, {"type": "none"}),
    ):
        pass
