"""The sweep: its distances, what it picks, and that it goes on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from cache_core.blocks import find_blocks
from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions
from cache_core.options import CacheOptions, DBCacheOptions, FBCacheOptions, NoCacheOptions
from raycache.models.registry import family_of
from raycache.size import Size
from raycache.tune.candidates import Family, check_families
from raycache.tune.command import read_prompts, read_targets
from raycache.tune.measures import PSNR_CAP, feature_distance, psnr, ssim
from raycache.tune.sweep import Job, Point, Sweep, choose, draw, frontier
from tests.helpers.tiny_models import load_tiny, tiny_folder

JOB = Job(("a red circle", "a blue star"), 6, Size(32, 32), 2)
FAMILY = Family("FB", tuple(FBCacheOptions(warmup_steps=1, residual_diff_threshold=t) for t in (0.0, 5.0, 6.0)))


@pytest.fixture(scope="module")
def pipe() -> Any:
    from raycache.demo.training.drawer import Drawer
    from raycache.demo.training.export import make_pipeline
    from raycache.demo.training.parts import make_autoencoder

    torch.manual_seed(0)
    drawer = Drawer(1, 2, 28, 27)
    for name, parameter in drawer.transformer.named_parameters():
        if "norm" in name or "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    pipe = make_pipeline(drawer.eval(), make_autoencoder().eval(), 0.0, 1.0)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        yield pipe


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_distances_of_equal_and_of_different_images(pipe: Any) -> None:
    one, other = images(0), images(1)
    assert (psnr(one, one) == PSNR_CAP).all()
    assert ssim(one, one) == pytest.approx(1.0)
    assert feature_distance(pipe.vae, one, one) == pytest.approx(0.0, abs=1e-6)
    assert (psnr(one, other) < 10).all()
    assert (ssim(one, other) < 0.2).all()
    near = np.clip(one.astype(int) + 8, 0, 255).astype(np.uint8)
    assert (feature_distance(pipe.vae, one, near) < feature_distance(pipe.vae, one, other)).all()
    # 8 levels everywhere, by hand.
    flat = np.full((1, 32, 32, 3), 100, np.uint8)
    assert psnr(flat, flat + 8)[0] == pytest.approx(10 * np.log10(255**2 / 64))


def point(seconds: float, decibel: float, share: float = 0.5) -> Point:
    return Point("f", {"type": "none"}, share, decibel, 1.0, 0.0, seconds)


def test_frontier_and_choice() -> None:
    points = [
        point(1.0, 60.0),
        point(0.7, 35.0),
        point(0.8, 34.0),
        point(0.5, 31.0),
        point(0.5, 29.0),
        point(0.4, 20.0),
    ]
    assert [p.seconds for p in frontier(points)] == [1.0, 0.7, 0.5, 0.4]
    assert choose(points, 30.0) == point(0.5, 31.0)
    assert choose(points, 36.0) == point(1.0, 60.0)
    assert choose(points[1:], 36.0) is None


def test_the_fastest_is_chosen_not_the_one_of_fewest_blocks() -> None:
    fast, few_blocks = point(0.5, 31.0, share=0.6), point(0.7, 33.0, share=0.3)
    assert choose([few_blocks, fast], 30.0) == fast
    # Seconds are measured once: among equally fast settings the one of the fewest blocks.
    noise = point(0.53, 34.0, share=0.4)
    assert choose([few_blocks, fast, noise], 30.0) == noise


def bold(options: CacheOptions) -> float:
    return options.speedup if isinstance(options, BudgetCacheOptions) else options.residual_diff_threshold


def test_families_grow_bolder_and_fit() -> None:
    for blocks, outer in ((3, 1), (20, 3), (57, 8)):
        made = check_families(blocks, 28)
        assert len({family.name for family in made}) == len(made)
        for family in made:
            values = [bold(options) for options in family.options]
            assert values == sorted(set(values))
        warmups = {(type(f.options[0]), f.options[0].warmup_steps) for f in made}
        assert {(kind, warmup) for kind in (ForecastCacheOptions, BudgetCacheOptions) for warmup in (4, 2)} <= warmups
        assert any(isinstance(f.options[0], DBCacheOptions) and f.options[0].Bn_compute_blocks == outer for f in made)


def test_a_stopped_sweep_goes_on(pipe: Any, tmp_path: Path) -> None:
    first = next(iter(Sweep(tmp_path, "tiny", JOB).run(pipe, [FAMILY], 10.0)))
    # Threshold 0 caches nothing: the very images, all blocks.
    assert (first.psnr, first.share) == (PSNR_CAP, 1.0)
    resumed = Sweep(tmp_path, "tiny", JOB)
    assert len(resumed.points) == 2
    rest = list(resumed.run(pipe, [FAMILY], 10.0))
    assert rest[0] == first
    assert rest[1].share < 1.0
    assert rest[1].psnr < PSNR_CAP
    with pytest.raises(ValueError, match="another model"):
        Sweep(tmp_path, "tiny", replace(JOB, steps=7))
    with pytest.raises(ValueError, match="another model"):
        Sweep(tmp_path, "tiny bfloat16", JOB)


def test_a_sweep_of_other_weights_is_not_continued(pipe: Any, tmp_path: Path) -> None:
    saved = Sweep(tmp_path, "tiny", JOB).references(pipe)
    assert np.array_equal(Sweep(tmp_path, "tiny", JOB).references(pipe), saved)
    older = {"pictures": saved}  # of a sweep begun before December 2026
    np.savez_compressed(tmp_path / "references.npz", **older)
    assert np.array_equal(Sweep(tmp_path, "tiny", JOB).references(pipe), saved)
    weight = pipe.transformer.proj_out.weight
    before = weight.clone()
    weight.mul_(1.5)
    try:
        with pytest.raises(ValueError, match="other weights"):
            Sweep(tmp_path, "tiny", JOB).references(pipe)
    finally:
        weight.copy_(before)


@pytest.mark.parametrize("name", ["sd3", pytest.param("wan-2.2", marks=pytest.mark.slow)])
def test_families_other_than_flux_are_measured(name: str, tmp_path: Path) -> None:
    """Wan 2.2: videos, guidance by a second call, and two transformers that share the steps."""
    pipe = load_tiny(tiny_folder(name))
    frames = family_of(type(pipe).__name__).frame_step + 1
    job = Job(("a red circle", "a blue star"), 4, Size(64, 64), 1, frames)
    options = FBCacheOptions(warmup_steps=1, residual_diff_threshold=50.0)
    points = list(Sweep(tmp_path, name, job).run(pipe, [Family("FB", (options,))], 0.0))
    assert points[0].share < 1.0
    assert points[0].psnr < PSNR_CAP
    uncached = next(point for point in Sweep(tmp_path, name, job).points.values() if point.family == "uncached")
    assert (uncached.share, uncached.psnr) == (1.0, PSNR_CAP)
    # The share is what ran: counted inside the blocks of all transformers by hooks of this test.
    calls, count = [0, 0], 0
    transformers = [getattr(pipe, part) for part in ("transformer", "transformer_2") if getattr(pipe, part, None)]
    inner = [next(block.module.children()) for transformer in transformers for block in find_blocks(transformer)]
    hooks = [part.register_forward_hook(lambda *_: calls.__setitem__(count, calls[count] + 1)) for part in inner]
    for count, some in enumerate((options, NoCacheOptions())):
        share = draw(pipe, job, some)[1]
        assert share == pytest.approx(points[0].share if count == 0 else 1.0)
    for hook in hooks:
        hook.remove()
    assert calls[0] / calls[1] == pytest.approx(points[0].share)


def test_a_family_ends_below_the_lowest_target(pipe: Any, tmp_path: Path) -> None:
    assert len(list(Sweep(tmp_path, "tiny", JOB).run(pipe, [FAMILY], PSNR_CAP))) == 2


def test_targets_and_prompts(tmp_path: Path) -> None:
    assert read_targets(["28", "fast=20"]) == {"high": 36.0, "balanced": 28.0, "fast": 20.0}
    for wrong in ("swift=20", "exact=60", "fast=x"):
        with pytest.raises(typer.BadParameter):
            read_targets([wrong])
    (file := tmp_path / "prompts.txt").write_text("one\n\n two \nthree\n")
    assert read_prompts("any", file, 2) == ["one", "two"]
    assert len(set(read_prompts("demo", None, 5))) == 5
    with pytest.raises(typer.BadParameter):
        read_prompts("other", None, 5)
