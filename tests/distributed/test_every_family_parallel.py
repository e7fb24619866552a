"""Every family that is split, drawn by jobs on two ranks: images and decisions are those of one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cache_core import FBCacheOptions, NoCacheOptions
from raycache.models.arguments import pipelines_of
from raycache.models.denoisers import denoisers_of
from raycache.models.registry import family_of
from raycache.testing.tiny_models import TINY_FAMILIES
from raycache.worker.active_job import RankContext
from raycache.worker.context_parallel import parallelize
from raycache.worker.job_runner import JobRunner
from tests.helpers.ranks import run_ranks
from tests.helpers.ticks import draw
from tests.helpers.tiny_models import load_tiny, tiny_folder, tiny_job

#: One of each pipeline whose transformer has a road, and the task that brings most.
CASES = [
    ("flux", "image-to-image"),
    ("flux-kontext", "edit"),
    ("flux-fill", "inpaint"),
    ("flux2-klein-base", "text-to-image"),
    ("qwen-image", "text-to-image"),
    ("z-image", "image-to-image"),
    ("sd3", "text-to-image"),
    ("hunyuan-image", "text-to-image"),
    ("wan-2.2", "text-to-video"),
    ("wan-i2v", "image-to-video"),
    ("ltx", "text-to-video"),
    ("ltx", "image-to-video"),
    ("ltx2", "text-to-video"),
    ("cogvideox", "text-to-video"),
]
CACHE = FBCacheOptions(warmup_steps=1, residual_diff_threshold=5.0, max_cached_steps=1)
Drawn = dict[tuple[str, str, str], tuple[dict[int, np.ndarray], Any]]


def _draw(pipe: Any, name: str, task: str, group: dist.ProcessGroup | None, rank: int, world: int) -> Drawn:
    family = family_of(TINY_FAMILIES[name].pipeline)
    text = TINY_FAMILIES[name].ask.get("max_sequence_length", 512)
    pipes = pipelines_of(pipe, family)
    runner = JobRunner(RankContext(pipe, family, rank, torch.device("cpu"), text, world, pipes=pipes), group)
    jobs = {
        tiny_job(name, task, "plain", (7,), steps=2, cache=NoCacheOptions()): 0,
        tiny_job(name, task, "cached", (8, 9), steps=4, cache=CACHE): 0,
        tiny_job(name, task, "later", (8,), steps=4, cache=CACHE): 1,
    }
    drawn = draw(runner, jobs)
    assert not drawn.failures, drawn.failures[0].trace
    outputs = drawn.outputs
    decided = {
        id: None
        if output.report is None
        else [[image["cached"] for image in step["images"]] for step in output.report["steps"]]
        for id, output in outputs.items()
    }
    return {(name, task, job.id): (drawn.decoded[job.id], decided.get(job.id)) for job in jobs}


def _ranks(rank: int, world_size: int, cases: list[tuple[str, str, Path]]) -> tuple[Drawn, Drawn]:
    alone: Drawn = {}
    together: Drawn = {}
    for name, task, folder in cases:
        pipe = load_tiny(folder)
        if rank == 0:
            alone |= _draw(pipe, name, task, None, 0, 1)
        groups = [parallelize(denoiser) for denoiser in denoisers_of(pipe).values()]
        together |= _draw(pipe, name, task, groups[0], rank, world_size)
    return alone, together


@pytest.mark.parametrize("world_size", [2])
def test_images_and_decisions_are_those_of_one_rank(world_size: int):
    ranks = run_ranks(world_size, _ranks, [(*case, tiny_folder(case[0])) for case in CASES], timeout=900)
    alone = ranks[0][0]
    assert len(alone) == 3 * len(CASES)
    for (name, task, id), (images, decided) in alone.items():
        parts = [told[1][name, task, id] for told in ranks]
        assert parts[0][1] == decided, f"{name}, {task}, {id}: decisions"
        rows = {row: image for own, _ in parts for row, image in own.items()}
        assert sorted(rows) == sorted(images)
        for row, image in images.items():
            assert np.abs(rows[row].astype(int) - image).max() <= 1, f"{name}, {task}, {id}, row {row}"
        if id != "plain":
            assert any(any(step) for step in decided), f"{name}: nothing was cached"
            assert not all(all(step) for step in decided)
