"""With compiled blocks LoRAs are exchanged in place: nothing is compiled again after the first calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch._dynamo as dynamo
from diffusers import FluxPipeline
from torch._dynamo.utils import counters

from raycache.models.compiling import BlockCompiler
from raycache.protocol.job_errors import LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings
from raycache.worker.adapters import Adapters
from tests.helpers.loras import fuse, make_lora
from tests.helpers.tiny_flux import Job, draw, gap, tiny_flux

JOB = Job(steps=2)


def small() -> Any:
    return tiny_flux(doubles=1, singles=1)


def pipe_of(transformer: Any) -> FluxPipeline:
    """As much of a pipeline as loading a LoRA needs."""
    return FluxPipeline(None, None, None, None, None, None, transformer)


@pytest.mark.slow
def test_no_lora_after_the_first_calls_compiles_anything(tmp_path: Path):
    transformer = small()
    plain = draw(transformer, JOB)
    files = {
        "a": make_lora(tmp_path / "a", small(), 1),
        "b": make_lora(tmp_path / "b", small(), 2, rank=8, alpha=4, layers=("to_q", "proj_mlp")),
    }
    loras = {name: {"path": str(file)} for name, file in files.items()} | {"late": {"path": str(tmp_path / "late")}}
    settings = ModelSettings.model_validate({"path": "noise", "compile": True, "loras": loras})
    BlockCompiler("eager").compile(transformer)
    adapters = Adapters(pipe_of(transformer), settings, compiled=True)
    dynamo.reset()
    counters.clear()
    assert gap(draw(transformer, JOB), plain) == 0, "a LoRA of zeros changes nothing"
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for name, scale in (("a", 0.7), ("b", -1.0), ("a", 0.2)):
        if name not in adapters.bytes:
            adapters.load(name, None)
        adapters.use(LoraChoice(name, scale))
        drawn, other = draw(transformer, JOB), small()
        fuse(pipe_of(other), files[name], scale)
        assert gap(drawn, draw(other, JOB)) < 1e-5, name
        assert gap(drawn, plain) > 1e-2
        adapters.use(None)
        assert gap(draw(transformer, JOB), plain) == 0, "and none is left behind"
    assert counters["stats"]["unique_graphs"] == graphs
    make_lora(tmp_path / "late", small(), 3, rank=16)
    with pytest.raises(LoraNotLoaded, match="has rank 16, unlike all LoRAs"):
        adapters.load("late", None)
    assert sorted(adapters.bytes) == ["a", "b"]
