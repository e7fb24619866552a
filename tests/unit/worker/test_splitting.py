"""Splitting a transformer over ranks: what is refused, and the self-check's half that needs one rank only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raycache.models.compiling import BlockCompiler
from raycache.models.roads import ROADS, WHOLE, splits_unevenly
from raycache.worker.context_parallel import parallelize
from raycache.worker.split_by import by_diffusers
from raycache.worker.split_check import SplitWrong, call_alone
from raycache.worker.split_inputs import INPUTS
from raycache.worker.split_roads import SPLITS
from raycache.worker.split_source import Source
from raycache.worker.uneven import TokenSplit, shares
from tests.helpers.tiny_forms import FORMS, other_form
from tests.helpers.tiny_transformers import TINY, build


def test_each_class_that_is_split_has_inputs_for_the_check():
    assert SPLITS.keys() == INPUTS.keys() == ROADS.keys()
    assert SPLITS.keys() <= TINY.keys()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", SPLITS)
def test_the_check_can_call_every_class_that_is_split(name: str, ranks: int):
    model = build(name)
    alone = call_alone(model, ranks)
    assert alone.tolerance == 1e-4, "float32, and rounding is far below"
    assert torch.equal(alone.output, call_alone(model, ranks).output), "all ranks compute the same"
    tokens = sum(value.numel() for value in alone.inputs.values() if isinstance(value, torch.Tensor))
    assert tokens < 10_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config", "needs"), FORMS)
def test_other_forms_of_a_class_get_what_they_need(name: str, config: dict[str, Any], needs: str):
    alone = call_alone(other_form(name, config), 2)
    assert not needs or needs in alone.inputs
    assert ("guidance" in alone.inputs) == bool(getattr(other_form(name, config).config, "guidance_embeds", False))


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_in_bfloat16_what_rounding_does_is_measured(name: str):
    alone = call_alone(build(name).bfloat16(), 2)
    assert 1e-2 <= alone.tolerance <= 0.1
    assert alone.output.dtype == torch.bfloat16


def test_inputs_do_not_touch_the_seed_of_others():
    before = torch.random.get_rng_state()
    call_alone(build("FluxTransformer2DModel"), 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_compiled_blocks_are_not_compiled_for_the_small_image():
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model: Any = build("FluxTransformer2DModel")
    wanted = call_alone(model, 2).output
    BlockCompiler(backend).compile(model)
    assert torch.equal(call_alone(model, 2).output, wanted)
    assert not compiled


@pytest.mark.parametrize("spoil", [0.0, float("nan")])
def test_a_model_that_tells_nothing_is_refused(spoil: float):
    model: Any = build("FluxTransformer2DModel")
    nn.init.constant_(model.proj_out.weight, spoil)
    nn.init.constant_(model.proj_out.bias, spoil)
    with pytest.raises(SplitWrong, match="FluxTransformer2DModel predicts only zeros, or something that is not"):
        call_alone(model, 2)


def test_a_model_that_its_config_does_not_describe_is_refused():
    model: Any = build("FluxTransformer2DModel")
    model.x_embedder = nn.Linear(5, 32)
    with pytest.raises(SplitWrong, match="FluxTransformer2DModel cannot be called with inputs made from its config"):
        call_alone(model, 2)


def test_a_class_of_which_nothing_is_known_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"DiTTransformer2DModel cannot be split over 2 ranks: .*Use one rank.*FluxTr"):
        parallelize(build("DiTTransformer2DModel"))


@pytest.mark.parametrize("name", WHOLE)
def test_why_a_class_stays_on_one_rank_is_told(monkeypatch: pytest.MonkeyPatch, name: str):
    assert name in TINY.keys() - ROADS.keys()
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=f"{name} cannot be split over 2 ranks: {WHOLE[name]}. Use one rank"):
        parallelize(build(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FluxTransformer2DModel", "2 attention heads do not divide among 3 ranks; use a divisor of 2"),
        ("ZImageTransformer2DModel", "2 attention heads are fewer than 3 ranks; use at most 2"),
    ],
)
def test_heads_that_ranks_cannot_share_are_named(monkeypatch: pytest.MonkeyPatch, name: str, words: str):
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=words):
        parallelize(build(name))


def test_token_replacement_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    model = build("HunyuanVideoTransformer3DModel+first_frame")
    with pytest.raises(ValueError, match="token_replace"):
        SPLITS["HunyuanVideoTransformer3DModel"](model)


def test_numbers_of_the_inputs_come_from_the_generator_alone():
    def latents() -> torch.Tensor:
        source = Source(build("WanTransformer3DModel").config, 2, torch.Generator().manual_seed(0))
        tensor: torch.Tensor = INPUTS["WanTransformer3DModel"](source)["hidden_states"]
        return tensor

    assert torch.equal(latents(), latents())


def test_whom_a_road_is_by_is_told_as_it_is():
    """Without torch it cannot be asked, so it stands in a table of its own."""
    for name, split in SPLITS.items():
        names = {*split.__code__.co_names, split.__name__}
        assert ("by_para_attention" in names) == (ROADS[name] == "ParaAttention") == (not splits_unevenly(name))
        assert (split is by_diffusers or "_cp_plan" in names) == (ROADS[name] == "diffusers")
    assert not splits_unevenly("DiTTransformer2DModel")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_shares_are_those_of_tensor_split(ranks: int):
    for total in range(ranks, 30):
        assert shares(total, ranks) == tuple(map(len, torch.arange(total).tensor_split(ranks)))


def _split(rank: int, ranks: int) -> TokenSplit:
    split = TokenSplit()
    split.rank, split.ranks = rank, ranks
    return split


def test_every_rank_tells_all_sizes_from_its_own():
    for ranks in (2, 3, 4):
        for latents, text in ((ranks, ranks), (10, 7), (9, 8), (16, 12)):
            for rank in range(ranks):
                split = _split(rank, ranks)
                split.note("latents", latents)
                split.note("text", text)
                image, words = shares(latents, ranks), shares(text, ranks)
                assert split.sizes(image[rank]) == image
                assert split.sizes(image[rank] + words[rank]) == tuple(map(sum, zip(image, words, strict=True)))
                with pytest.raises(ValueError, match=f"attention to 99 tokens on rank {rank}"):
                    split.sizes(99)


def test_a_stream_of_fewer_tokens_than_ranks_is_refused():
    with pytest.raises(ValueError, match="2 tokens of text cannot be split over 3 ranks, each of which needs one"):
        _split(0, 3).note("text", 2)
