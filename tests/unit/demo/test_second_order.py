"""The second order of the forecast on the bundled model, block by block, where errors come back through the blocks."""

from __future__ import annotations

import pytest
import torch

from cache_core import DBPruneOptions, NoCacheOptions
from raycache.demo import demo_model_path
from raycache.demo.evaluate import held_out_scenes, load
from raycache.size import Size
from raycache.tune.measures import psnr
from raycache.tune.sweep import Job, draw


@pytest.mark.slow
def test_order_two_is_better_than_none_for_about_the_same_blocks() -> None:
    """Without its limit it computed a third more blocks: what it forecast moved the inputs that decide."""
    pipe = load(str(demo_model_path()))
    job = Job(tuple(scene.caption for scene in held_out_scenes(200, seed=3)[:2]), 28, Size(128, 128), 2)

    def prune(order: int) -> DBPruneOptions:
        return DBPruneOptions(
            Fn_compute_blocks=1, Bn_compute_blocks=1, residual_diff_threshold=0.15, taylor_order=order
        )

    with torch.no_grad():
        exact, _, _ = draw(pipe, job, NoCacheOptions())
        (repeated, shared, _), (forecast, share, _) = (draw(pipe, job, prune(order)) for order in (0, 2))
    assert psnr(forecast, exact).mean() > psnr(repeated, exact).mean() + 2
    assert share < shared + 0.08
