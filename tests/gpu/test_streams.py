"""Decoding in a stream of its own, beside the calls of other jobs: no image may differ for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cache_core import DBCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.models.flux import FluxFamily
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.flux_pipe import load
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw, whole

CACHE = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, warmup_steps=2, residual_diff_threshold=0.5)


def test_images_decoded_beside_calls_are_the_same(device: str, tmp_path: Path):
    """Jobs end while others go on; a stream that did not wait would decode latents that are half made."""
    pipe = load(build_noise_model(tmp_path / "model", layers=1, single_layers=2)).to(device)
    steps = {"a": 4, "b": 6, "c": 8, "last, beside which the others are decoded": 14}
    jobs = {
        make_job(name, seeds=(count,), steps=count, cache=CACHE, size="256x256"): 0 for name, count in steps.items()
    }
    outputs = {}
    for overlaps in (False, True):
        context = RankContext(pipe, FluxFamily(), 0, torch.device(device), 64, 1, overlaps)
        outputs[overlaps] = whole([draw(JobRunner(context, None), jobs)])
    for name in ("a", "b", "c"):
        images, wanted = (outputs[overlaps][name].images.astype(int) for overlaps in (True, False))
        assert wanted.std() > 5
        assert np.abs(images - wanted).max() <= 1
