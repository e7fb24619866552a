"""Text encoders whose layers are split over the ranks encode to the bit as whole ones, and a failure costs one job."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from raycache.models.loading import load_pipeline
from raycache.models.quantization import configs_of, quantized_layers
from raycache.models.registry import family_of
from raycache.models.text_encoders import TextEncoders, load_text_encoders, text_encoders_named
from raycache.settings import ModelSettings
from raycache.worker import remote_layers
from raycache.worker.encoding import OneEncodes, remember_prompts
from raycache.worker.exchange import FirstFailed
from raycache.worker.layer_owners import bytes_of
from raycache.worker.prompt_cache import PromptCache
from raycache.worker.remote_layers import RemoteLayers
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_models import load_tiny, tiny_folder

CPU = torch.device("cpu")
#: One of each kind of text encoder: CLIP and T5, Mistral, Qwen with and without images, Qwen3, UMT5, Gemma.
NAMES = [
    "flux",
    "flux2",
    "flux2-klein",
    "qwen-image",
    "qwen-image-edit",
    "z-image",
    "sd3",
    "hunyuan-image",
    "wan-2.2",
    "ltx2",
    "sana",
]


def _split(folder: Path, **settings: Any) -> tuple[Any, TextEncoders, RemoteLayers]:
    """A pipeline that encodes with layers on all ranks."""
    model = ModelSettings(path=str(folder), **{"dtype": "float32"} | settings)
    pipe = load_pipeline(model, str(folder), CPU, without=text_encoders_named(folder))
    how = configs_of(model, family_of(type(pipe).__name__), folder)
    whole = load_text_encoders(
        folder, pipe, here=True, encode_on=CPU, dtype=getattr(torch, model.dtype), device=CPU, quantized=how
    )
    layers = RemoteLayers.of(dist.group.WORLD, CPU, 120)
    encoders = TextEncoders(whole.stand_ins, layers.divide(whole.modules), CPU)
    remember_prompts(pipe, PromptCache(0), OneEncodes(encoders, dist.group.WORLD, CPU, layers))
    return pipe, encoders, layers


def _encoded(pipe: Any, prompt: str) -> list[torch.Tensor]:
    takes = inspect.signature(type(pipe).encode_prompt).parameters
    image = {"image": Image.new("RGB", (56, 56), "red")} if "image" in takes else {}
    asked = {"prompt": [prompt], "device": CPU, "do_classifier_free_guidance": False}
    asked |= {name: None for name in ("prompt_2", "prompt_3") if name in takes}
    with torch.no_grad():
        told = pipe.encode_prompt(**{name: value for name, value in asked.items() if name in takes}, **image)
    return list(_tensors(told))


def _weights(model: nn.Module) -> int:
    """Bytes of them; buffers may be shared or computed."""
    return sum(weight.nbytes for weight in model.parameters())


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _families(rank: int, world: int, folders: dict[str, Path]) -> dict[str, Any]:
    answer = {}
    for name, folder in folders.items():
        pipe, encoders, layers = _split(folder)
        held = sum(_weights(model) for model in (*encoders.modules.values(), *layers.mine.values()))
        split = [_encoded(pipe, prompt) for prompt in ("a red circle", "two green squares above")]
        whole = load_tiny(folder)
        alone = [_encoded(whole, prompt) for prompt in ("a red circle", "two green squares above")]
        answer[name] = split, alone, held, sum(_weights(getattr(whole, part)) for part in encoders.stand_ins)
    return answer


@pytest.mark.parametrize("world_size", [3])
def test_every_encoder_encodes_as_when_it_is_whole(world_size: int):
    ranks = run_ranks(world_size, _families, {name: tiny_folder(name) for name in NAMES}, timeout=600)
    for name in NAMES:
        for split, alone, _, _ in (told[name] for told in ranks):
            assert len(split[0]) == len(alone[0]) >= 1
            assert not torch.equal(split[0][0], split[1][0]), "the prompt matters"
            for one, other in zip([*split[0], *split[1]], [*alone[0], *alone[1]], strict=True):
                assert torch.equal(one, other), name
        shares = [told[name][2] for told in ranks]
        assert sum(shares) == ranks[0][name][3], f"{name}: each weight is on one rank"
        assert shares[0] < ranks[0][name][3], f"{name}: nothing is on another rank"


QUANTIZED = {"dtype": "bfloat16", "quantization": "int8_weight", "quantize_text_encoder": True}


def _quantized(rank: int, world: int, folder: Path) -> tuple[Any, Any, int]:
    pipe, encoders, layers = _split(folder, **QUANTIZED)
    alone = load_pipeline(ModelSettings(path=str(folder), **QUANTIZED), str(folder), CPU)
    held = [*encoders.modules.values(), *layers.mine.values()]
    assert sum(len(quantized_layers(model)) for model in held) > 0
    return _encoded(pipe, "a red circle"), _encoded(alone, "a red circle"), sum(map(bytes_of, held))


def test_a_quantized_encoder_is_split_as_well():
    ranks = run_ranks(2, _quantized, tiny_folder("flux2"), timeout=300)
    for split, alone, _ in ranks:
        assert torch.equal(split[0], alone[0])
    assert min(held for _, _, held in ranks) > 0.3 * sum(held for _, _, held in ranks)


#: On which rank what fails: to make room for what a layer gets or returns, to pack it, to read it.
FAULTS = [(rank, name) for name in ("buffer_for", "packed", "put_together") for rank in (0, 1)]


def _failures(rank: int, world: int, folder: Path) -> list[Any]:
    """What each of these ends with, and that encoding works afterwards."""
    pipe, encoders, layers = _split(folder)
    expected = _encoded(load_tiny(folder), "a red circle")
    answer: list[Any] = []

    def outcome() -> None:
        try:
            answer.append(torch.equal(_encoded(pipe, "a red circle")[0], expected[0]))
        except FirstFailed as error:
            answer.append(str(error))

    def fail(*_: Any) -> Any:
        raise ValueError("no such thing")

    for modules in (layers.mine.values(), encoders.modules.values()):  # of rank 1, of rank 0
        hooks = [module.register_forward_pre_hook(fail) for module in modules]
        outcome()
        for hook in hooks:
            hook.remove()
        outcome()
    for where, name in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            if rank == where:
                patch.setattr(remote_layers, name, fail)
            outcome()
        outcome()
    return answer


def test_a_failure_is_one_of_this_prompt_only():
    first, second = run_ranks(2, _failures, tiny_folder("flux"), timeout=300)
    assert first == second
    assert first[1::2] == [True] * (2 + len(FAULTS))
    assert all(failure.endswith("ValueError: no such thing") for failure in first[::2])
    assert first[0].startswith("LayerFailed: text_encoder")
    assert " on rank 1: " in first[0]
