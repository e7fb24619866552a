"""LoRAs of a pipeline with two transformers (Wan 2.2): a file for each, or for the first alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from raycache.protocol.job_errors import LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings
from raycache.testing.tiny_models import build_tiny
from raycache.worker.adapters import Adapters, adapters_of
from tests.helpers.loras import make_lora

LAYERS = ("to_q", "to_v", "ffn.net.0.proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("wan-2.2", tmp_path_factory.mktemp("wan"))


def load(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: WanPipeline) -> np.ndarray:
    """A video, whose first steps are of the first transformer and whose last are of the second."""
    return pipe(
        "a red circle",
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
    ).frames


def fused(folder: Path, files: dict[str, Path], scale: float) -> np.ndarray:
    """With the LoRA in the weights for good, as diffusers does."""
    pipe = load(folder)
    for part, file in files.items():
        pipe.load_lora_weights(str(file), adapter_name=part, load_into_transformer_2=part == "transformer_2")
        pipe.fuse_lora(components=[part], adapter_names=[part], lora_scale=scale)
    pipe.unload_lora_weights()
    return drawn(pipe)


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pipe, made = load(folder), tmp_path_factory.mktemp("loras")
    return {
        part: make_lora(made / part, getattr(pipe, part), seed, rank=seed, layers=LAYERS)
        for seed, part in enumerate(("transformer", "transformer_2"), 2)
    }


def adapters(pipe: WanPipeline, **loras: dict[str, str]) -> Adapters:
    made = adapters_of(pipe, ModelSettings.model_validate({"path": "noise", "dtype": "float32", "loras": loras}))
    assert made is not None
    return made


def settings_of(first: Path, second: Path) -> dict[str, str]:
    return {"path": str(first), "path_2": str(second)}


@pytest.mark.slow
def test_each_transformer_has_its_own(folder: Path, files: dict[str, Path]):
    pipe = load(folder)
    plain = drawn(pipe)
    ours = adapters(
        pipe,
        both=settings_of(files["transformer"], files["transformer_2"]),
        first={"path": str(files["transformer"])},
        swapped=settings_of(files["transformer_2"], files["transformer"]),
    )
    for name in ("both", "first", "swapped"):
        ours.load(name, None)
    assert ours.bytes["both"] == ours.bytes["swapped"] > ours.bytes["first"]
    expected: dict[str, Any] = {
        "first": fused(folder, {"transformer": files["transformer"]}, 0.5),
        "both": fused(folder, files, 0.5),
        "swapped": fused(folder, {"transformer": files["transformer_2"], "transformer_2": files["transformer"]}, 0.5),
    }
    for name in ("both", "first", "swapped", "first"):
        ours.use(LoraChoice(name, 0.5))
        np.testing.assert_allclose(drawn(pipe), expected[name], rtol=0, atol=1e-5)
    images = [plain, *expected.values()]
    assert all(np.abs(one - other).max() > 1e-3 for k, one in enumerate(images) for other in images[:k])
    ours.use(None)
    np.testing.assert_array_equal(drawn(pipe), plain)


def test_one_that_cannot_be_had_for_the_second_changes_neither(tmp_path: Path, folder: Path, files: dict[str, Path]):
    pipe = load(folder)
    plain = drawn(pipe)
    wrong = {
        name.replace("blocks.0", "blocks.99"): weight for name, weight in load_file(files["transformer_2"]).items()
    }
    save_file(wrong, tmp_path / "wrong.safetensors")
    ours = adapters(pipe, ink=settings_of(files["transformer"], tmp_path / "wrong.safetensors"))
    with pytest.raises(LoraNotLoaded, match=r"another model: WanTransformer3DModel has no blocks\.99"):
        ours.load("ink", None)
    assert not ours.bytes
    np.testing.assert_array_equal(drawn(pipe), plain)
