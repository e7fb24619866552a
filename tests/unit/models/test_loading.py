"""Finding and splitting models: clear errors, and the repair of ParaAttention."""

from __future__ import annotations

import inspect
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cache_core.para_attention import mend_is_needed
from raycache.models.source import ModelNotFound, prepare_model
from raycache.settings import ModelSettings


def test_a_hub_id_out_of_reach_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(ModelNotFound) as caught:
        prepare_model(ModelSettings(path="someone/not-here", cache_dir=tmp_path))
    assert time.monotonic() - began < 5
    for word in ("someone/not-here", str(tmp_path), "HF_HOME", "HF_TOKEN", "model.path"):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 700
    assert caught.value.__suppress_context__, "one error, not a stack of them"


@pytest.mark.parametrize("path", ["/no/such/folder", "flux", "./flux", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id(path: str):
    with pytest.raises(ModelNotFound, match="neither an existing folder nor a hub id"):
        prepare_model(ModelSettings(path=path))


def test_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        prepare_model(ModelSettings(path=str(tmp_path)))


def test_the_noise_model_is_built_once_and_known_as_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built: list[Path] = []

    def build(folder: Path) -> Path:
        built.append(folder)
        folder.mkdir()
        (folder / "model_index.json").touch()
        (folder / "raycache_model.json").write_text('{"kind": "noise"}')
        return folder

    monkeypatch.setattr("raycache.demo.noise.build_noise_model", build)
    folder, kind = prepare_model(ModelSettings(path="noise", cache_dir=tmp_path))
    assert kind == "noise"
    assert built[0].parent == tmp_path
    assert prepare_model(ModelSettings(path=folder)) == (folder, "noise")


def test_the_repair_is_still_needed(monkeypatch: pytest.MonkeyPatch):
    """When this fails, the installed ParaAttention takes ``enable_gqa``: delete the repair."""
    from para_attn import para_attn_interface as interface

    assert mend_is_needed()
    # As installed: another test of this process may have repaired it.
    monkeypatch.setattr(interface, "ulysses_attn_func", inspect.unwrap(interface.ulysses_attn_func))
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(TypeError, match="enable_gqa"), interface.UlyssesAttnMode():
        F.scaled_dot_product_attention(q, q, q, enable_gqa=False)
