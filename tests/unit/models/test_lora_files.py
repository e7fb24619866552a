"""What speaks against a LoRA's file is found before anything is deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raycache.models.lora_files import LoraFault, lora_faults, lora_files
from raycache.settings import LoraSettings, ModelSettings

WEIGHTS = {"transformer.blocks.0.to_q.lora_A.weight": torch.ones(2, 8)}


def model(path: Path | str, **fields: object) -> ModelSettings:
    lora = {"path": str(path), **{key: fields.pop(key) for key in ("weight_name",) if key in fields}}
    return ModelSettings.model_validate({"path": "noise", "loras": {"ink": lora}, **fields})


def file_of(settings: ModelSettings) -> Path:
    return lora_files(settings.loras["ink"], settings)["transformer"]


def test_a_file_or_the_only_one_in_a_folder_is_meant(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "one.safetensors")
    assert file_of(model(tmp_path / "one.safetensors")) == file_of(model(tmp_path)) == tmp_path / "one.safetensors"
    assert lora_faults(model(tmp_path)) == []
    save_file(WEIGHTS, tmp_path / "two.safetensors")
    with pytest.raises(LoraFault, match=r"one\.safetensors, two\.safetensors; set `weight_name`"):
        file_of(model(tmp_path))
    assert file_of(model(tmp_path, weight_name="two.safetensors")).name == "two.safetensors"
    (fault,) = lora_faults(model(tmp_path, weight_name="three.safetensors"))
    assert fault.startswith("model.loras.ink: ")
    assert "three.safetensors" in fault


@pytest.mark.parametrize("path", ["/no/such/file", "./nothing", "nothing"])
def test_a_path_that_is_nowhere_is_named(path: str):
    (fault,) = lora_faults(model(path))
    assert path in fault


def test_one_of_the_hub_is_not_asked_for_unless_it_must_be_here():
    assert lora_faults(model("nobody/nothing-at-all")) == []
    (fault,) = lora_faults(model("nobody/nothing-at-all", local_files_only=True))
    assert "nobody/nothing-at-all" in fault


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_encoder.layers.0.lora_A.weight", "text encoder"),
        ("lora_te1_text_model_encoder.lora_down.weight", "text encoder"),
        ("transformer.blocks.0.dora_scale", "another kind"),
        ("blocks.0.lokr_w1", "another kind"),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path: Path, name: str, words: str):
    save_file({**WEIGHTS, name: torch.ones(2)}, tmp_path / "one.safetensors")
    (fault,) = lora_faults(model(tmp_path))
    assert words in fault
    assert name in fault


def test_a_broken_or_too_large_file_is_refused(tmp_path: Path):
    file = tmp_path / "one.safetensors"
    save_file(WEIGHTS, file)
    (fault,) = lora_faults(model(file, lora_bytes=10))
    assert "model.lora_bytes (10)" in fault
    file.write_bytes(file.read_bytes()[:-1])
    (fault,) = lora_faults(model(file))
    assert "truncated" in fault
    file.write_bytes(b"")
    (fault,) = lora_faults(model(file))
    assert "truncated" in fault


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (fault,) = lora_faults(model(tmp_path))
    assert "raycache[lora]" in fault
    assert lora_faults(ModelSettings(path="noise")) == []
    assert LoraSettings(path="x").scale == 1


def test_the_file_for_the_second_transformer_is_judged_as_the_first(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "high.safetensors")
    lora = {"path": str(tmp_path / "high.safetensors"), "path_2": str(tmp_path / "low.safetensors")}
    settings = ModelSettings.model_validate({"path": "noise", "loras": {"ink": lora}})
    (fault,) = lora_faults(settings)
    assert "low.safetensors" in fault
    save_file(WEIGHTS, tmp_path / "low.safetensors")
    assert lora_faults(settings) == []
    found = {part: file.name for part, file in lora_files(settings.loras["ink"], settings).items()}
    assert found == {"transformer": "high.safetensors", "transformer_2": "low.safetensors"}
