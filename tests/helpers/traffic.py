"""Jobs of every kind on one transformer that arrive, share calls and are dropped midway; and each of them alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from cache_core import CacheOptions, DBCacheOptions, DBPruneOptions, FBCacheOptions, NoCacheOptions, cache_session
from raycache.worker.stepper import Ended, Stepper
from tests.helpers.flux_pipe import draw

__all__ = ["Asked", "alone", "drive", "pipes_of", "traffic"]

METHODS: tuple[CacheOptions, ...] = (
    DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2),
    DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=2, Bn_compute_blocks_ids=(1,), warmup_steps=2),
    FBCacheOptions(warmup_steps=2),
    DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, non_prune_blocks_ids=(2,), warmup_steps=2),
    NoCacheOptions(),
)


@dataclass(frozen=True)
class Asked:
    """A job, and when it arrives and leaves.

    Attributes:
        task: ``text``, ``image`` (from one), or ``cfg`` (true classifier-free guidance: two calls per step).
        due: the round in which it starts.
        leaves: the round in which it is dropped, if it is not done by then.
    """

    name: str
    task: str
    steps: int
    seed: int
    guidance: float
    width: int
    images: int
    options: CacheOptions
    due: int
    leaves: int | None = None

    def __call__(self, pipe: Any) -> torch.Tensor:
        more: dict[str, Any] = {}
        if self.task == "image":
            more |= {"image": Image.new("RGB", (self.width, 64), "red"), "strength": 0.7}
        if self.task == "cfg":
            more |= {"negative_prompt": "a blue square", "true_cfg_scale": 3.0}
        return draw(
            pipe,
            width=self.width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            num_images_per_prompt=self.images,
            generator=[torch.Generator().manual_seed(self.seed + k) for k in range(self.images)],
            **more,
        )


def traffic(rng: random.Random, count: int) -> list[Asked]:
    """Random jobs, most of them with one method, so that they share calls."""
    usual = rng.choice(METHODS)
    asked = []
    for k in range(count):
        options = usual if rng.random() < 0.8 else rng.choice(METHODS)
        if options.type != "none":
            changes: dict[str, Any] = {
                "residual_diff_threshold": rng.choice((0.05, 0.2, 0.5, 5.0)),
                "warmup_steps": rng.randint(0, 3),
                "taylor_order": rng.randint(0, 2),
            }
            options = options.model_copy(update=changes)
        due = rng.randint(0, 5)
        asked.append(
            Asked(
                name=f"job {k}",
                task=rng.choice(("text", "text", "image", "cfg")),
                steps=rng.randint(2, 8),
                seed=10 * k,
                guidance=rng.choice((1.5, 3.5, 7.0)),
                width=rng.choice((64, 64, 64, 96)),
                images=rng.choice((1, 1, 2)),
                options=options,
                due=due,
                leaves=due + rng.randint(1, 6) if rng.random() < 0.25 else None,
            )
        )
    return asked


def pipes_of(pipe: FluxPipeline) -> dict[str, Any]:
    """Pipelines by task, with the same components."""
    image = FluxImg2ImgPipeline(**pipe.components)
    image.set_progress_bar_config(disable=True)
    return {"text": pipe, "cfg": pipe, "image": image}


def drive(
    stepper: Stepper, pipes: Mapping[str, Any], jobs: Sequence[Asked], rng: random.Random
) -> tuple[dict[str, Ended], int]:
    """The results of jobs that were not dropped, and the most jobs in one call; ``rng`` may split calls."""
    ended: dict[str, Ended] = {}
    gone, most, now = set[str](), 0, 0
    while len(ended) + len(gone) < len(jobs):
        for job in jobs:
            if job.due == now:
                assert stepper.start(job.name, job, job.options, pipes[job.task]) is None
            if job.leaves == now and job.name in stepper.waiting:
                stepper.end(job.name)
                gone.add(job.name)
        groups: dict[Any, list[str]] = {}
        for name, key in stepper.waiting.items():
            groups.setdefault(name if key is None else key, []).append(name)
        for names in groups.values():
            rng.shuffle(names)
            cut = rng.randint(1, len(names)) if rng.random() < 0.3 else len(names)
            for part in (names[:cut], names[cut:]):
                if part:
                    most = max(most, len(part))
                    ended |= {one.name: one for one in stepper.step(part)}
        now += 1
    return ended, most


def alone(pipes: Mapping[str, Any], job: Asked) -> tuple[torch.Tensor, Any]:
    """The latents and the report of one job alone, without the stepper."""
    pipe = pipes[job.task]
    with torch.no_grad(), cache_session(pipe.transformer, job.options) as report:
        return job(pipe), report
