"""Tokens and heads that do not divide among the ranks: two ranks draw and decide as one, compiled or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.ranks import run_ranks

FBCACHE = {"type": "FBCache", "warmup_steps": 1, "residual_diff_threshold": 0.2}
STEPS = 4
Z_IMAGE, SD3, QWEN = "ZImageTransformer2DModel", "SD3Transformer2DModel", "QwenImageTransformer2DModel"
HUNYUAN, WAN, LTX = "HunyuanImageTransformer2DModel", "WanTransformer3DModel", "LTXVideoTransformer3DModel"
THREE = {"num_attention_heads": 3}
#: Class, what differs in its config, its text's tokens, how many of them are valid in the first image.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Z-Image with 3 heads": (Z_IMAGE, {"n_heads": 3, "n_kv_heads": 3, "dim": 48}, 0, 0),
    "SD3 with odd text": (SD3, {}, 7, 7),
    "SD3 with 3 heads": (SD3, THREE | {"caption_projection_dim": 48}, 6, 6),
    "Qwen-Image with odd text": (QWEN, {}, 7, 2),
    "Qwen-Image with 3 heads": (QWEN, THREE, 5, 5),
    "HunyuanImage with odd text": (HUNYUAN, {}, 7, 2),
    # Divides, but a rank has more of the text's padding than the other.
    "HunyuanImage with a short text": (HUNYUAN, {}, 6, 1),
    "Bria with both": ("BriaTransformer2DModel", THREE, 7, 7),
    # 15 tokens; the text is whole on both.
    "Wan with odd latents": (WAN, THREE, 7, 7),
    "LTX-Video with 3 heads": (LTX, THREE | {"cross_attention_dim": 48}, 7, 3),
}


def _inputs(case: str, step: int) -> dict[str, Any]:
    from tests.helpers.pictures import Pictures
    from tests.helpers.tiny_transformers import TINY

    name, _, text, valid = CASES[case]
    pictures = Pictures((1, 2), (0.01, 1.0), step)
    inputs = TINY[name].inputs(pictures)
    if name == WAN:
        inputs["hidden_states"] = pictures.latents(4, 1, 6, 10)
    if text:
        inputs["encoder_hidden_states"] = pictures.fixed(text, 16, salt=1)
    for mask in inputs.keys() & {"encoder_attention_mask", "encoder_hidden_states_mask"}:
        inputs[mask] = torch.arange(text) < torch.tensor([[valid], [text]])
    if "txt_ids" in inputs:
        inputs["txt_ids"] = torch.zeros(text, 3)
    return inputs | {"return_dict": False}


def _draw(model: Any, case: str) -> torch.Tensor:
    outputs = [model(**_inputs(case, step))[0] for step in range(STEPS)]
    return torch.stack([torch.stack(list(output)) for output in outputs])


def _drawn(model: Any, case: str, group: Any) -> tuple[torch.Tensor, torch.Tensor, list[list[bool]]]:
    from cache_core import cache_session

    with torch.no_grad():
        plain = _draw(model, case)
        with cache_session(model, FBCACHE, group=group) as report:
            cached = _draw(model, case)
    return plain, cached, [[image.cached for image in step.images] for step in report.steps]


def _every_case(rank: int, world_size: int) -> dict[str, Any]:
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.tiny_forms import other_form

    answers = {}
    for case, (name, config, *_) in CASES.items():
        model = other_form(name, config)
        alone = _drawn(model, case, None)
        answers[case] = alone, _drawn(model, case, parallelize(model))
    return answers


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_ranks(2, _every_case, timeout=240)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_draw_and_decide_as_one(answers: list[dict[str, Any]], case: str):
    for answer in answers:
        (plain, cached, decided), (plain_too, cached_too, decided_too) = answer[case]
        assert float((plain_too - plain).norm() / plain.norm()) <= 1e-5
        assert float((cached_too - cached).norm() / cached.norm()) <= 1e-5
        assert decided_too == decided
        assert {hit for step in decided for hit in step} == {True, False}, "both ways are taken"


def _compiled(rank: int, world_size: int, case: str) -> dict[str, Any]:
    """Messages are counted, too: one to an attention, and one back."""
    from raycache.worker.context_parallel import parallelize
    from raycache.worker.uneven import TokenSplit
    from tests.helpers.tiny_forms import other_form

    name, config, *_ = CASES[case]
    sent, exchange = [], TokenSplit.exchange
    kind: Any = TokenSplit  # a method is exchanged, which types do not foresee

    def counted(self: Any, packed: torch.Tensor, *sizes: Any) -> torch.Tensor:
        sent.append(packed.numel())
        return exchange(self, packed, *sizes)

    answer = {}
    for compiled in (False, True):
        model = other_form(name, config)
        for block in model.transformer_blocks if compiled else ():
            block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
        parallelize(model)
        kind.exchange = exchange if compiled else counted
        with torch.no_grad():
            answer[str(compiled)] = model(**_inputs(case, 0))[0]
    return answer | {"sent": len(sent), "blocks": len(model.transformer_blocks)}


@pytest.mark.parametrize("case", ["Qwen-Image with odd text", "SD3 with odd text"])
def test_a_block_is_one_graph(case: str):
    for answer in run_ranks(2, _compiled, case):
        torch.testing.assert_close(answer["True"], answer["False"])
        if case.startswith("Qwen"):
            assert answer["sent"] == answer["blocks"] * 3, "to an attention, its mask, and back; 16 image tokens divide"


def _gradients(rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.tiny_forms import other_form

    """Of one attention, whose tokens the hooks did not split."""
    model, found = other_form(WAN, THREE), []
    for split in (False, True):
        if split:
            parallelize(model)
        attention = model.blocks[0].attn1
        states = torch.randn(1, 15, 48, generator=torch.Generator().manual_seed(0))
        own = states.tensor_split(2, 1)[rank] if split else states
        own = own.clone().requires_grad_()
        if split:
            model._parallel_config.context_parallel_config.split.note("latents", 15)
        attention(own).square().sum().backward()
        found.append(own.grad if split else own.grad.tensor_split(2, 1)[rank])
    return found[0], found[1]


def test_gradients_are_those_of_one_rank():
    for alone, split in run_ranks(2, _gradients):
        assert bool(alone.any())
        torch.testing.assert_close(split, alone, rtol=1e-4, atol=1e-6)


def _too_few(rank: int, world_size: int) -> str:
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.tiny_forms import other_form

    model = other_form(QWEN, {})
    parallelize(model)
    inputs = _inputs("Qwen-Image with odd text", 0)
    for name in ("encoder_hidden_states", "encoder_hidden_states_mask"):
        inputs[name] = inputs[name][:, :1]
    with torch.no_grad():
        try:
            model(**inputs)
        except ValueError as error:
            return str(error)
    return ""


def test_fewer_tokens_than_ranks_are_refused_on_all_alike():
    for text in run_ranks(2, _too_few):
        assert text.startswith("1 tokens of text cannot be split over 2 ranks")
