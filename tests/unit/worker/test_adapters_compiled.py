"""With compiled blocks LoRAs are exchanged in place: nothing is compiled again after the first job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from torch._dynamo.utils import counters

from cache_core import FBCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.models.denoisers import blocks_of
from raycache.protocol.job import LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings
from raycache.worker.adapters import Adapters
from raycache.worker.stepper import Stepper
from tests.helpers.flux_pipe import draw, load
from tests.helpers.loras import fuse, make_lora

CACHE = FBCacheOptions(warmup_steps=2, residual_diff_threshold=0.3)


def one(pipe: Any, adapters: Adapters | None = None, lora: LoraChoice | None = None) -> torch.Tensor:
    """One image by one job."""
    stepper = Stepper(pipe, adapters=adapters)
    if adapters is not None and lora is not None and lora.name not in adapters.bytes:
        adapters.load(lora.name, None)
    assert stepper.start("job", lambda own: draw(own, num_inference_steps=4), CACHE, lora=lora) is None
    while True:
        for ended in stepper.step(["job"]):
            assert ended.error is None
            return ended.result


@pytest.mark.slow
def test_no_lora_after_the_first_job_compiles_anything(tmp_path: Path):
    folder = build_noise_model(tmp_path / "noise", layers=1, single_layers=2)
    pipe = load(folder)
    files = {
        "a": make_lora(tmp_path / "a", pipe.transformer, 1),
        "b": make_lora(tmp_path / "b", pipe.transformer, 2, rank=8, alpha=4, layers=("to_q", "proj_mlp")),
    }
    pipe = load(folder)
    plain = one(pipe)
    loras = {name: {"path": str(file)} for name, file in files.items()} | {"late": {"path": str(tmp_path / "late")}}
    settings = ModelSettings.model_validate({"path": "noise", "compile": True, "loras": loras})
    for block in blocks_of(pipe.transformer):
        module: Any = block.module
        module.forward = torch.compile(module.forward, backend="eager")
    adapters = Adapters(pipe, settings)
    dynamo.reset()
    counters.clear()
    assert torch.equal(one(pipe, adapters), plain), "a LoRA of zeros changes nothing"
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for name, scale in (("a", 0.7), ("b", 1.0), ("a", 0.2), ("b", -1.0), ("a", 0.7)):
        drawn = one(pipe, adapters, LoraChoice(name, scale))
        fused = load(folder)
        fuse(fused, files[name], scale)
        expected = one(fused)
        assert float((drawn - expected).abs().max() / expected.abs().max()) < 1e-5, name
        assert (drawn - plain).abs().max() > 1e-2
        assert torch.equal(one(pipe, adapters), plain), "and none is left behind"
    assert counters["stats"]["unique_graphs"] == graphs
    make_lora(tmp_path / "late", load(folder).transformer, 3, rank=16)
    with pytest.raises(LoraNotLoaded, match="has rank 16, which no LoRA"):
        adapters.load("late", None)
    assert sorted(adapters.bytes) == ["a", "b"]
