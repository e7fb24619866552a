"""Quantized models on two ranks decide as on one, and a LoRA on top is what it adds to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache_core import FBCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.models.quantization import quantized_layers
from raycache.protocol.lora import LoraChoice
from raycache.settings import AppSettings
from raycache.worker.rank import Rank
from tests.helpers.flux_pipe import load
from tests.helpers.jobs import make_job
from tests.helpers.loras import make_lora
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import Drawn, draw, whole

CACHE = FBCacheOptions(warmup_steps=2, residual_diff_threshold=0.3)
#: Below every difference of this model: nothing is reused.
STRICT = FBCacheOptions(warmup_steps=2, residual_diff_threshold=1e-6)
SCALE = 2.0


def _rank(folder: Path, rank: int, world: int, kind: str, loras: dict[str, Any]) -> Rank:
    settings = AppSettings.model_validate(
        {
            "model": {"path": str(folder), "quantization": kind, "loras": loras},
            "parallel": {"ranks_per_replica": world, "device": "cpu", "threads_per_rank": 1},
        }
    )
    made = Rank(settings, rank, f"{folder}-{kind}-{world}-{rank}.stacks")
    assert made.load(str(folder), "noise").model.quantization == kind
    return made


def _draw(rank: Rank, lora: LoraChoice | None) -> Drawn:
    jobs = {make_job("plain", steps=6, cache=CACHE): 0, make_job("strict", steps=6, cache=STRICT): 0}
    if lora is not None:
        jobs[make_job("lora", steps=6, cache=CACHE, lora=lora)] = 0
    return draw(rank, jobs)


def _added(rank: Rank, file: Path) -> Drawn:
    """What one rank draws whose weights are the quantized ones, made whole again, with the LoRA added."""
    transformer = rank._pipe.transformer
    state = load_file(file)
    for name, layer in quantized_layers(transformer).items():
        weight = layer.weight.dequantize()
        if (a := state.get(f"transformer.{name}.lora_A.weight")) is not None:
            weight = weight.float() + SCALE * (state[f"transformer.{name}.lora_B.weight"] @ a)
        layer.weight = torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
    assert not quantized_layers(transformer)
    return _draw(rank, None)


def _ranks(rank: int, world: int, folder: Path, file: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for kind in ("int8_weight", "fp8_weight"):
        loras, lora = {"a": {"path": str(file)}}, LoraChoice("a", SCALE)
        answer[kind] = _draw(_rank(folder, rank, world, kind, loras), lora)
        if rank == 0:
            answer[f"{kind} alone"] = _draw(_rank(folder, 0, 1, kind, loras), lora)
            answer[f"{kind} added"] = _added(_rank(folder, 0, 1, kind, {}), file)
    return answer


def _cached(drawn: Drawn, name: str) -> list[list[bool]]:
    report = drawn.outputs[name].report
    assert report is not None
    return [[image["cached"] for image in step["images"]] for step in report["steps"]]


def _gap(images: Any, others: Any) -> float:
    return float(np.abs(images.astype(int) - others).mean())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_decide_as_one_and_a_lora_is_what_it_adds(tmp_path: Path):
    folder = build_noise_model(tmp_path / "noise", layers=1, single_layers=2)
    file = make_lora(tmp_path / "a", load(folder).transformer, 1)
    ranks = run_ranks(2, _ranks, folder, file, timeout=380)
    for kind in ("int8_weight", "fp8_weight"):
        together, alone = whole([told[kind] for told in ranks]), ranks[0][f"{kind} alone"]
        for name, reuses in (("plain", True), ("lora", True), ("strict", False)):
            decided = _cached(alone, name)
            assert any(map(any, decided)) == reuses
            assert _cached(ranks[0][kind], name) == decided  # what ranks decide otherwise ends a call
        drawn = {name: alone.outputs[name].images for name in ("plain", "lora")}
        moved = _gap(drawn["lora"], drawn["plain"])
        assert moved > 1
        added = ranks[0][f"{kind} added"].outputs["plain"].images
        assert _gap(drawn["lora"], added) < 0.5 * moved
        for name, images in drawn.items():
            assert _gap(together[name].images, images) < 0.5 * moved, name
