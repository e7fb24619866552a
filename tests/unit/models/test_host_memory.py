"""Where weights lie after loading, as the kernel says, and what is told of those that each rank copies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycache.models import host_memory
from raycache.models.host_memory import cast_bytes, told_of_casts
from raycache.models.loading import load_pipeline
from raycache.settings import ModelSettings
from tests.helpers.tiny_models import tiny_folder

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_folder("flux-kontext")


def own_and_mapped(module: nn.Module) -> Iterator[tuple[bool, int]]:
    """Whether each parameter lies in a file of weights that is mapped, by the kernel's own list, and its bytes."""
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [
        tuple(int(end, 16) for end in fields[0].split("-")) for fields in ranges if fields[-1].endswith(".safetensors")
    ]
    for parameter in module.parameters():
        place = parameter.data_ptr()
        yield any(begin <= place < end for begin, end in mapped), parameter.nbytes


def own_bytes(module: nn.Module) -> int:
    return sum(size for mapped, size in own_and_mapped(module) if not mapped)


def loaded(folder: Path, dtype: Any) -> Any:
    return load_pipeline(ModelSettings(path=str(folder), dtype=dtype), str(folder), torch.device("cpu"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_weights_in_their_stored_type_are_mapped_and_others_are_copied_as_told(folder: Path):
    assert cast_bytes(folder, "float32") == {}
    pipe = loaded(folder, "float32")
    for part in PARTS:
        assert own_bytes(getattr(pipe, part)) == 0, part
    told = cast_bytes(folder, "bfloat16")
    pipe = loaded(folder, "bfloat16")
    for part in PARTS:
        module = getattr(pipe, part)
        # Tied weights are stored once, and counted once.
        assert own_bytes(module) == pytest.approx(told[part], rel=0.05), part


def test_a_copy_in_each_rank_is_told_where_it_is_large(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert told_of_casts(folder, "bfloat16", 64) is None, "a tiny model"
    monkeypatch.setattr(host_memory, "_WORTH_TELLING", 1)
    words = told_of_casts(folder, "bfloat16", 4)
    assert words is not None
    for expected in (str(folder), "4 ranks", "transformer", "text_encoder", "save_pretrained", "model.dtype"):
        assert expected in words
    assert told_of_casts(folder, "float32", 4) is None


def test_variants_that_are_not_loaded_do_not_count(folder: Path, tmp_path: Path):
    for name in ("model_index.json", "transformer"):
        (tmp_path / name).symlink_to(folder / name)
    before = cast_bytes(tmp_path, "bfloat16")
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    for file in (folder / "transformer").iterdir():
        (tmp_path / "transformer" / file.name).symlink_to(file)
        if file.suffix == ".safetensors":
            (tmp_path / "transformer" / f"{file.stem}.fp16.safetensors").symlink_to(file)
    assert cast_bytes(tmp_path, "bfloat16") == before
