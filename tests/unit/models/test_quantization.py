"""Quantized models: what is quantized and what is left, copies that are read as they were written, and refusals."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo as dynamo
from pydantic import ValidationError
from rich.console import Console
from torch import nn
from torch._dynamo.utils import counters

from raycache.demo.noise import build_noise_model
from raycache.dry_run import look_here
from raycache.models.compiling import BlockCompiler
from raycache.models.denoisers import blocks_of
from raycache.models.loading import load_pipeline
from raycache.models.quantization import CannotQuantize, quantized_layers, refuse_what_does_not_fit
from raycache.models.quantized_folder import quantization_faults, quantizations_told
from raycache.models.registry import FAMILIES, family_of
from raycache.protocol.lora import LoraChoice
from raycache.quantize import quantize
from raycache.settings import AppSettings, ModelSettings
from raycache.worker.adapters import adapters_of
from tests.helpers.flux_pipe import draw, load
from tests.helpers.loras import make_lora
from tests.helpers.tiny_flux import gap

CPU = torch.device("cpu")
#: Where modulations by the timestep come from, and what else is no work of many tokens.
LEFT_OUT = re.compile(r"norm|_mod\b|_mod\.|modulation|embed|proj_out$|time|adaLN")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("quantized") / "noise", layers=1, single_layers=1)


def settings(path: Path, **fields: Any) -> ModelSettings:
    return ModelSettings.model_validate({"path": str(path), **fields})


def in_memory(model: nn.Module) -> int:
    """Bytes of the weights of linear layers that are quantized in the copy, whatever holds them."""
    total = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and not LEFT_OUT.search(name.replace("transformer_blocks.0.proj_out", "x")):
            weight: Any = layer.weight
            parts = [weight.qdata, weight.scale] if hasattr(weight, "qdata") else [weight]
            total += sum(part.nbytes for part in parts)
    return total


def by_family() -> dict[str, str]:
    """Each class of transformer with a pipeline whose family has it."""
    return {family_of(pipeline).transformer: pipeline for pipeline in FAMILIES}


@pytest.mark.parametrize(("transformer", "pipeline"), by_family().items())
def test_a_family_s_words_mean_the_work_of_its_blocks_and_nothing_else(transformer: str, pipeline: str):
    """Of its real class at its real widths, with a block of each kind, and without memory."""
    family, of = family_of(pipeline), getattr(diffusers, transformer)
    names = {"num_layers", "num_single_layers", "n_layers", "n_refiner_layers", "num_refiner_layers"}
    with torch.device("meta"):
        model = of(**dict.fromkeys(names & set(inspect.signature(of.__init__).parameters), 2))
    pattern = re.compile(rf"(?:{'|'.join(family.quantized)})\.\d+\.(?!(?:.*\.)?(?:{'|'.join(family.kept)})).*")
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    chosen = {name for name in linear if pattern.fullmatch(f"{name}.weight")}
    inside = {id(layer) for block in blocks_of(model) for layer in block.module.modules()}
    missed = {name for name, layer in linear.items() if id(layer) in inside and name not in chosen}
    assert all(LEFT_OUT.search(name) for name in missed), missed
    wrong = {name for name in chosen if LEFT_OUT.search(name) and ".proj_out" not in name}
    assert not wrong
    assert {id(linear[name]) for name in chosen} & inside, "nothing of what the cache calls blocks"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8_weight", "fp8_weight"])
def test_a_copy_is_half_as_large_and_read_as_it_was_written(noise: Path, tmp_path: Path, kind: Any):
    asked = settings(noise, quantization=kind, quantize_text_encoder=True)
    before, after = quantize(asked, noise, tmp_path / "copy", "noise", Console(quiet=True))
    assert after < before
    assert set(quantizations_told(tmp_path / "copy").values()) == {kind}
    at_load = load_pipeline(asked, str(noise), CPU)
    copied = load_pipeline(asked, str(tmp_path / "copy"), CPU)
    plain = load_pipeline(settings(noise), str(noise), CPU)
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        there, here = getattr(copied, part), getattr(at_load, part)
        assert quantized_layers(there).keys() == quantized_layers(here).keys() != set()
        for name, layer in quantized_layers(here).items():
            assert torch.equal(there.get_submodule(name).weight.dequantize(), layer.weight.dequantize()), name
    assert in_memory(copied.transformer) < 0.56 * in_memory(plain.transformer)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    plain.transformer.save_pretrained(tmp_path / "plain")
    whole = (tmp_path / "plain" / Path(weights).name).stat().st_size
    saved = whole - (tmp_path / "copy" / weights).stat().st_size
    assert saved > 0.8 * (in_memory(plain.transformer) - in_memory(copied.transformer))
    # Once more is nothing to do; another kind is not put over it.
    quantize(asked, noise, tmp_path / "copy", "noise", Console(quiet=True))
    with pytest.raises(FileExistsError):
        quantize(settings(noise, quantization="int8"), noise, tmp_path / "copy", "noise", Console(quiet=True))
    with pytest.raises(CannotQuantize, match="is quantized already"):
        quantize(
            settings(tmp_path / "copy", quantization=kind, quantize_text_encoder=True),
            tmp_path / "copy",
            tmp_path / "other",
            "noise",
            Console(quiet=True),
        )


def marked(folder: Path, part: str, said: Any) -> Path:
    """A folder whose part says so of itself."""
    (folder / part).mkdir(parents=True)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    index["text_encoder_2"] = ["transformers", "T5EncoderModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / part / "config.json").write_text(json.dumps({"quantization_config": said}))
    return folder


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": data}}}


PER_ROW, PER_TENSOR = ({"_type": "PerRow"}, {"_type": "PerTensor"})
FP8 = "Float8DynamicActivationFloat8WeightConfig"


@pytest.mark.parametrize(
    ("part", "said", "fields", "words"),
    [
        ("transformer", torchao("Int8WeightOnlyConfig"), {}, "set model.quantization: int8_weight"),
        ("transformer", torchao("Int8WeightOnlyConfig"), {"quantization": "fp8_weight"}, "quantization: int8_weight"),
        ("transformer", torchao("Int8WeightOnlyConfig"), {"quantization": "int8_weight"}, None),
        ("transformer", torchao(FP8, granularity=[PER_ROW, PER_ROW]), {"quantization": "fp8"}, None),
        ("transformer", torchao(FP8, granularity=[PER_TENSOR, PER_TENSOR]), {"quantization": "fp8"}, "PerTensor"),
        ("transformer", torchao("Int4WeightOnlyConfig"), {"quantization": "int8"}, "not supported"),
        ("transformer", {"quant_method": "bitsandbytes"}, {}, "not supported (bitsandbytes)"),
        ("transformer", None, {"quantization": "int8"}, None),
        ("text_encoder_2", torchao("Int8WeightOnlyConfig"), {"quantization": "int8"}, "quantize_text_encoder: true"),
        (
            "text_encoder_2",
            torchao("Int8WeightOnlyConfig"),
            {"quantization": "int8", "quantize_text_encoder": True},
            None,
        ),
        ("text_encoder_2", torchao("Int8WeightOnlyConfig"), {}, "quantize_text_encoder: true"),
    ],
)
def test_a_folder_that_says_something_else_is_refused_with_what_is_right(
    tmp_path: Path, part: str, said: Any, fields: dict[str, Any], words: str | None
):
    faults = quantization_faults(settings(tmp_path, **fields), marked(tmp_path, part, said))
    assert len(faults) == (words is not None)
    assert words is None or words in faults[0]


@pytest.mark.parametrize(
    ("model", "parallel", "words"),
    [
        ({"quantization": "fp8"}, {"device": "cpu"}, "int8_weight, int8 and fp8_weight do not"),
        ({"quantization": "fp8"}, {"accelerator_type": "A100-80G"}, "A100-80G does not multiply in FP8"),
        ({"quantization": "int8", "dtype": "float32"}, {}, "needs model.dtype: bfloat16, not float32"),
        ({"quantize_text_encoder": True}, {}, "needs model.quantization"),
        ({"quantization": "int8", "quantize_text_encoder": True, "text_encoders": "cpu"}, {}, "text_encoders: cpu"),
        ({"quantization": "fp8"}, {"accelerator_type": "L20"}, None),
        ({"quantization": "fp8"}, {"accelerator_type": "AnotherCard"}, None),
        ({"quantization": "fp8_weight"}, {"device": "cpu"}, None),
    ],
)
def test_what_a_card_cannot_is_known_from_the_settings(model: Any, parallel: Any, words: str | None):
    document = {"model": {"path": "x", **model}, "parallel": parallel}
    if words is None:
        assert AppSettings.model_validate(document).model.quantization == model["quantization"]
        return
    with pytest.raises(ValidationError, match=re.escape(words)):
        AppSettings.model_validate(document)


def test_a_card_that_settings_do_not_name_is_asked_before_weights_are_read(
    noise: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(CannotQuantize, match="fp8 needs parallel"):
        load_pipeline(settings(noise, quantization="fp8"), str(noise), CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A40")
    for capability, fits in (((8, 6), False), ((8, 9), True), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, told=capability: told)
        asked = settings(noise, quantization="fp8"), noise, torch.device("cuda")
        if fits:
            refuse_what_does_not_fit(*asked)
        else:
            with pytest.raises(CannotQuantize, match="NVIDIA A40 does not multiply in FP8"):
                refuse_what_does_not_fit(*asked)


@pytest.mark.slow
def test_a_dry_run_looks_at_the_folder_and_for_the_library(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def said(path: Path, **model: Any) -> str:
        document = {
            "model": {"path": str(path), **model},
            "parallel": {"ranks_per_replica": 1, "device": "cpu"},
            "cache": {"type": "none"},
        }
        found = look_here(AppSettings.model_validate(document))
        return " ".join(found.engines["flux"])

    assert said(noise, quantization="int8_weight") == ""
    quantize(settings(noise, quantization="int8_weight"), noise, tmp_path / "copy", "noise", Console(quiet=True))
    assert said(tmp_path / "copy", quantization="int8_weight") == ""
    assert "set model.quantization: int8_weight" in said(tmp_path / "copy")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else there(name))
    assert "pip install 'raycache[quant]'" in said(noise, quantization="int8_weight")
    assert "pip install 'raycache[quant]'" in said(tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8_weight"])
def test_compiled_blocks_with_a_lora_draw_as_they_do_uncompiled(noise: Path, tmp_path: Path, kind: Any):
    """Through the same slots as unquantized ones, and nothing is compiled again when the LoRA is put on and off."""
    file = make_lora(tmp_path / "a", load(noise).transformer, 1)
    loras = {"a": {"path": str(file)}}
    drawn: dict[bool, list[torch.Tensor]] = {}
    for compiled in (False, True):
        asked = settings(noise, quantization=kind, loras=loras)
        pipe = load_pipeline(asked, str(noise), CPU)
        if compiled:
            dynamo.reset()
            BlockCompiler("aot_eager").compile(pipe.transformer)
        adapters = adapters_of(pipe, asked, compiled=compiled)
        assert adapters is not None
        images = [draw(pipe, num_inference_steps=1)]
        counters.clear()
        adapters.load("a", None)
        for choice in (LoraChoice("a", 1.0), None):
            adapters.use(choice)
            images.append(draw(pipe, num_inference_steps=1))
        assert counters["stats"]["unique_graphs"] == 0
        drawn[compiled] = images
    for eager, other in zip(drawn[False], drawn[True], strict=True):
        assert gap([eager.float()], [other.float()]) < 0.05
    plain, changed, again = drawn[True]
    assert torch.equal(plain, again)
    assert gap([plain.float()], [changed.float()]) > 0.07
