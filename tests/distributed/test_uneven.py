"""Tokens and heads that do not divide among the ranks: two ranks draw and decide as one, compiled or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.conditioned_images import Images, ids
from tests.helpers.ranks import run_ranks

FBCACHE = {"type": "FBCache", "warmup_steps": 1, "residual_diff_threshold": 0.2}
STEPS = 4
Z_IMAGE, SD3, QWEN = "ZImageTransformer2DModel", "SD3Transformer2DModel", "QwenImageTransformer2DModel"
HUNYUAN, WAN, LTX = "HunyuanImageTransformer2DModel", "WanTransformer3DModel", "LTXVideoTransformer3DModel"
BRIA, CHROMA, ERNIE = "BriaTransformer2DModel", "ChromaTransformer2DModel+masked", "ErnieImageTransformer2DModel"
FLUX3, HUNYUAN_VIDEO = "Flux3Transformer2DModel+reference", "HunyuanVideo15Transformer3DModel+image"
KREA, LTX2 = "Krea2Transformer2DModel", "LTX2VideoTransformer3DModel"
QWEN21 = "QwenImage21Transformer2DModel+reference"
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
    "Bria with both": (BRIA, THREE, 7, 7),
    # 15 tokens; the text is whole on both.
    "Wan with odd latents": (WAN, THREE, 7, 7),
    "LTX-Video with 3 heads": (LTX, THREE | {"cross_attention_dim": 48}, 7, 3),
    "LTX-Video from an image": (LTX, {}, 7, 3),
    "LTX-2 from an image": (LTX2, {"rope_type": "split"}, 7, 2),
    "LTX-2 with 3 heads": (
        LTX2,
        THREE | {"cross_attention_dim": 48, "audio_num_attention_heads": 3, "audio_cross_attention_dim": 24},
        7,
        1,
    ),
    # With what the other encoders give, 11 tokens, of which the second rank has hardly any that is valid.
    "HunyuanVideo 1.5 with both": (HUNYUAN_VIDEO, THREE, 6, 1),
    "Chroma with both": (CHROMA, THREE, 7, 2),
    "Chroma with a short text": (CHROMA, {}, 6, 1),
    "FLUX.3 with both": (FLUX3, THREE, 7, 7),
    "Krea 2 with both": (KREA, THREE, 7, 2),
    "Qwen-Image 2.1 with both": (QWEN21, THREE, 7, 3),
    "ERNIE-Image with both": (ERNIE, THREE | {"hidden_size": 48}, 7, 2),
}
#: The same on four ranks.
ON_FOUR = {
    "Qwen-Image with 5 heads": (QWEN, {"num_attention_heads": 5}, 7, 2),
    "Wan with 6 heads": (WAN, {"num_attention_heads": 6}, 7, 7),
    "HunyuanVideo 1.5 with 5 heads": (HUNYUAN_VIDEO, {"num_attention_heads": 5}, 6, 1),
}


def _odd(case: str, images: Images, text: int, valid: int) -> dict[str, Any]:
    """What the class of ``case`` needs for texts of ``text`` tokens, of which the first has ``valid``."""
    mask = torch.arange(text) < torch.tensor([[valid], [text]])
    if case.endswith("from an image"):  # each token of the video has a timestep of its own
        timesteps = {"timestep": images.fixed(32, salt=3).abs() * 1000}
        return timesteps | ({"audio_timestep": images.times(1000)} if case.startswith("LTX-2") else {})
    if case.startswith("LTX-2"):
        return {"hidden_states": images.latents(15, 8), "num_frames": 1, "height": 3, "width": 5}
    if case.startswith("Chroma"):
        return {"attention_mask": torch.cat([mask, torch.ones(2, 16)], 1)}  # numbers, as its pipeline has them
    if case.startswith("FLUX.3"):
        images_of = {"image_cond_hidden_states": images.fixed(5, 8, salt=2), "image_cond_ids": ids(1, 1, 5, 1)}
        return images_of | {"txt_ids": ids(1, 1, 1, text)}
    if case.startswith("Krea"):
        places = torch.cat([torch.zeros(text, 3), ids(1, 4, 4)])
        return {"encoder_hidden_states": images.fixed(text, 2, 16, salt=1), "position_ids": places}
    if case.startswith("Qwen-Image 2.1"):
        return {"img_mask": torch.tensor([[False] * 3 + [True] * 2 + [False] * 2 + [True] * 4] * 2)}
    if case.startswith("ERNIE"):
        return {"text_bth": images.fixed(text, 16, salt=1), "text_lens": torch.tensor([valid, text])}
    return {}


def _inputs(case: str, step: int) -> dict[str, Any]:
    from tests.helpers.tiny_transformers import TINY

    name, _, text, valid = (CASES | ON_FOUR)[case]
    images = Images((1, 2), (0.01, 1.0), step)
    inputs = TINY[name].inputs(images)
    if name == WAN:
        inputs["hidden_states"] = images.latents(4, 1, 6, 10)
    if text and "encoder_hidden_states" in inputs:
        inputs["encoder_hidden_states"] = images.fixed(text, 16, salt=1)
    for mask in inputs.keys() & {"encoder_attention_mask", "encoder_hidden_states_mask"}:
        inputs[mask] = torch.arange(text) < torch.tensor([[valid], [text]])
    if "txt_ids" in inputs:
        inputs["txt_ids"] = torch.zeros(text, 3)
    return inputs | _odd(case, images, text, valid) | {"return_dict": False}


def _draw(model: Any, case: str) -> torch.Tensor:
    """Images, and sound where there is some."""
    outputs = [model(**_inputs(case, step)) for step in range(STEPS)]
    return torch.stack([torch.cat([torch.stack(list(part)).flatten(1) for part in parts], 1) for parts in outputs])


def _drawn(model: Any, case: str, group: Any) -> tuple[torch.Tensor, torch.Tensor, list[list[bool]]]:
    from cache_core import cache_session

    with torch.no_grad():
        plain = _draw(model, case)
        with cache_session(model, FBCACHE, group=group) as report:
            cached = _draw(model, case)
    return plain, cached, [[image.cached for image in step.images] for step in report.steps]


def _every_case(rank: int, world_size: int, cases: Any) -> dict[str, Any]:
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.tiny_transformers import build

    answers = {}
    for case, (name, config, *_) in cases.items():
        model = build(name, **config)
        alone = _drawn(model, case, None)
        answers[case] = alone, _drawn(model, case, parallelize(model))
    return answers


@pytest.fixture(scope="module")
def answers() -> list[dict[str, Any]]:
    return run_ranks(2, _every_case, CASES, timeout=600)


@pytest.fixture(scope="module")
def answers_of_four() -> list[dict[str, Any]]:
    return run_ranks(4, _every_case, ON_FOUR, timeout=600)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_draw_and_decide_as_one(answers: list[dict[str, Any]], case: str):
    _check(answers, case)


@pytest.mark.parametrize("case", ON_FOUR)
def test_four_ranks_draw_and_decide_as_one(answers_of_four: list[dict[str, Any]], case: str):
    assert len(answers_of_four) == 4
    _check(answers_of_four, case)


def _check(answers: list[dict[str, Any]], case: str) -> None:
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
