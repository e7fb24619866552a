"""Any jobs at any time on real ranks: decisions and latents are those of each alone on one rank."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from raycache.demo.noise import build_noise_model
from raycache.worker.context_parallel import parallelize
from raycache.worker.stepper import Stepper
from tests.helpers.flux_pipe import load
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_flux import decisions
from tests.helpers.traffic import alone, drive, pipes_of, traffic

SEEDS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_noise_model(tmp_path_factory.mktemp("models") / "noise", layers=1, single_layers=3)


def _drawn(ended: Any, jobs: Any) -> dict[str, Any]:
    return {
        job.name: (ended[job.name].result, [decisions(ended[job.name].report, row) for row in range(job.images)])
        for job in jobs
        if job.name in ended
    }


def _drive(rank: int, world_size: int, folder: Path) -> dict[int, Any]:
    expected: dict[int, Any] = {}
    if rank == 0:
        pipes = pipes_of(load(folder))
        for seed in SEEDS:
            rng = random.Random(seed)
            for job in traffic(rng, 5):
                latents, report = alone(pipes, job)
                expected[seed, job.name] = latents, [decisions(report, row) for row in range(job.images)]
    pipe = load(folder)
    group = parallelize(pipe.transformer)
    pipes, told = pipes_of(pipe), {}
    for seed in SEEDS:
        rng = random.Random(seed)
        jobs = traffic(rng, 5)
        ended, most = drive(Stepper(pipe, group), pipes, jobs, rng)
        told[seed] = _drawn(ended, jobs), most
    return {"expected": expected, "told": told}


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_job_is_as_alone_on_one_rank(model: Path, world_size: int):
    ranks = run_ranks(world_size, _drive, model, timeout=300)
    expected = ranks[0]["expected"]
    assert max(most for _, most in ranks[0]["told"].values()) >= 3
    drawn = saved = 0
    for rank in ranks:
        for seed, (jobs, _) in rank["told"].items():
            for name, (latents, decided) in jobs.items():
                torch.testing.assert_close(latents, expected[seed, name][0], atol=1e-4, rtol=1e-4)
                assert decided == expected[seed, name][1]
                drawn += 1
                saved += any(d[0] or d[2] for row in decided for d in row)
    assert drawn > 10 * world_size
    assert saved > 5 * world_size
