"""One rank that runs ticks without a gang."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline

from cache_core import DBCacheOptions
from raycache.models.flux import FluxFamily
from raycache.protocol.job import Job, JobOutput
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from raycache.worker.observer import Observer
from tests.helpers.jobs import make_job

__all__ = ["CACHE", "Failing", "close", "job", "runner_of"]

CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.5)


def runner_of(
    pipe: FluxPipeline, rank: int = 0, observer: Observer | None = None, world: int = 1, overlaps: bool = False
) -> JobRunner:
    observer = observer or Observer()
    device = torch.device("cpu")
    return JobRunner(RankContext(pipe, FluxFamily(), rank, device, 64, world, overlaps, observer=observer), None)


def job(name: str, seed: int = 7, steps: int = 6, cache: Any = CACHE, **fields: Any) -> Job:
    return make_job(name, seeds=(seed,), steps=steps, cache=cache, **fields)


def close(output: JobOutput, expected: JobOutput) -> bool:
    return bool(np.abs(output.images.astype(int) - expected.images.astype(int)).max() <= 1)


class Failing(Observer):
    """Raises at one point of one job."""

    def __init__(self, name: str, at: str, step: int = 1, error: type[Exception] = RuntimeError) -> None:
        self.name, self.at, self.step, self.error = name, at, step, error

    def entered(self, job: Job, phase: str) -> None:
        if (job.id, phase) == (self.name, self.at) and phase != "denoise":
            raise self.error("on purpose")

    def step_ends(self, job: Job, step: int, latents: torch.Tensor) -> None:
        if (job.id, "denoise", step) == (self.name, self.at, self.step):
            raise self.error("on purpose")
