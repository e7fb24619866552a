"""LoRAs on two ranks: images are those of one rank with fused weights, and what one rank cannot load none has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_core import FBCacheOptions, NoCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.protocol.job import Job
from raycache.protocol.lora import LoraChoice
from raycache.settings import AppSettings
from raycache.worker.rank import Rank
from tests.helpers.flux_pipe import load
from tests.helpers.jobs import make_job
from tests.helpers.loras import fuse, make_lora
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import Drawn, draw, whole

CACHE = FBCacheOptions(warmup_steps=2, residual_diff_threshold=0.3)


def _job(name: str, lora: LoraChoice | None, seed: int = 7, **fields: Any) -> Job:
    return make_job(name, steps=5, seeds=(seed,), lora=lora, **{"cache": CACHE, **fields})


def _rank(folder: Path, rank: int, world: int, loras: dict[str, Path], **model: Any) -> Rank:
    named = {name: {"path": str(file)} for name, file in loras.items()}
    settings = AppSettings.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "loras": named, **model},
            "parallel": {"ranks_per_replica": world, "device": "cpu", "threads_per_rank": 1},
        }
    )
    made = Rank(settings, rank, f"{folder}-{world}-{rank}.stacks")
    made.load(str(folder), "noise")
    return made


def _fused(folder: Path, job: Job, file: Path) -> Drawn:
    """What one rank draws whose weights have the LoRA in them for good."""
    rank = _rank(folder, 0, 1, {})
    assert job.lora is not None
    fuse(rank._pipe, file, job.lora.scale)
    return draw(rank, {_job("fused", None, job.images[0].seed, cache=job.cache): 0})


def _ranks(rank: int, world: int, folder: Path, files: dict[str, Path], damaged: list[Path]) -> dict[str, Any]:
    # Each rank reads a node of its own: the second one's copies are damaged.
    files = {**files, "broken": damaged[2 * rank], "other": damaged[2 * rank + 1]}
    together = _rank(folder, rank, world, files)
    jobs = {_job("a", LoraChoice("a", 0.7)): 0, _job("none", None): 0, _job("b", LoraChoice("b"), 8): 1}
    plain = _job("uncached", LoraChoice("a", 0.7), cache=NoCacheOptions())
    answer: dict[str, Any] = {"good": draw(together, {**jobs, plain: 2})}
    for name in ("broken", "other"):
        running = _job("beside", LoraChoice("a"))
        answer[name] = draw(together, {running: 0, _job(name, LoraChoice(name)): 1}, first=100)
    answer["after"] = draw(together, {_job("a", LoraChoice("a", 0.7)): 0}, first=200)
    answer["loaded"] = dict(together._jobs._context.adapters.bytes)
    if rank == 0:
        answer["none"] = draw(_rank(folder, 0, 1, {}), {_job("none", None): 0})
        for job in (*jobs, plain):
            if job.lora is not None:
                answer[f"fused {job.id}"] = _fused(folder, job, files[job.lora.name])
    return answer


def _cached(drawn: Drawn, name: str) -> Any:
    report = drawn.outputs[name].report
    return None if report is None else [[image["cached"] for image in step["images"]] for step in report["steps"]]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_draw_what_fused_weights_draw_and_agree_on_what_is_broken(tmp_path: Path):
    folder = build_noise_model(tmp_path / "noise", layers=1, single_layers=2)
    transformer = load(folder).transformer
    files = {
        "a": make_lora(tmp_path / "a", transformer, 1),
        "b": make_lora(tmp_path / "b", transformer, 2, rank=2, layers=("to_v", "proj_mlp")),
    }
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files["b"].read_bytes()[:-7])
    ranks = run_ranks(2, _ranks, folder, files, [files["b"], files["b"], cut, files["a"]], timeout=380)
    first = ranks[0]
    drawn = whole([told["good"] for told in ranks])
    for name in ("a", "none", "b", "uncached"):
        alone = first["none" if name == "none" else f"fused {name}"]
        expected = alone.outputs["none" if name == "none" else "fused"]
        assert np.abs(drawn[name].images.astype(int) - expected.images).max() <= 1, name
        assert _cached(first["good"], name) == _cached(alone, "none" if name == "none" else "fused")
    assert np.abs(drawn["a"].images.astype(int) - drawn["none"].images).max() > 5
    assert any(any(step) for name in ("a", "b") for step in _cached(first["good"], name))
    for name, words in (("broken", "rank 1: SafetensorError"), ("other", "differ between ranks")):
        for told in ranks:
            (failure,) = told[name].failures
            assert (failure.kind, failure.type, failure.phase) == ("error", "LoraNotLoaded", "loading")
            assert words in failure.message
            assert failure.place == first[name].failures[0].place
        assert sorted(whole([told[name] for told in ranks])) == ["beside"]
    after = whole([told["after"] for told in ranks])
    np.testing.assert_array_equal(after["a"].images, drawn["a"].images)
    assert first["loaded"] == ranks[1]["loaded"]
    assert sorted(first["loaded"]) == ["a", "b"]
