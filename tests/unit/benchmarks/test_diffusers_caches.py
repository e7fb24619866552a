"""diffusers' caches as contenders: they leave the pipeline as it was, and their share is what was computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig

from benchmarks.diffusers_caches import configs, drawn_by
from cache_core.options import NoCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.size import Size
from raycache.tune.sweep import Job, draw
from tests.helpers.flux_pipe import load

JOB = Job(("a red circle", "a blue star"), 6, Size(64, 64), 1)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("models") / "noise"
    with torch.no_grad():
        yield load(build_noise_model(folder, layers=2, single_layers=3))


def test_a_cache_that_reuses_nothing_computes_all_of_it(pipe: Any) -> None:
    images, share = drawn_by(lambda *_: FirstBlockCacheConfig(threshold=0.0))(pipe, JOB)
    assert share == 1.0
    assert np.array_equal(images, draw(pipe, JOB, NoCacheOptions())[0])


def test_the_share_of_blocks_left_out_is_counted(pipe: Any) -> None:
    """One computed step of six: the other five run one of five blocks, here counted by hooks inside the blocks."""
    ran: list[int] = []
    blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
    # A copy of the transformer is cached, and hooks are copied with it.
    hooks = [block.attn.to_q.register_forward_hook(lambda *_: ran.append(1)) for block in blocks]
    _, share = drawn_by(lambda *_: FirstBlockCacheConfig(threshold=1e9))(pipe, JOB)
    for hook in hooks:
        hook.remove()
    uncached, cached = 6 * 5, 2 * (5 + 5 * 1)  # one image to know the whole, two cached ones
    assert len(ran) == uncached + cached
    assert share == pytest.approx((5 + 5) / 30, abs=0.1), "double blocks cost more, and so do embedders and the output"


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted({rule for rule, _, _ in configs(2)}))
def test_each_runs_saves_something_and_leaves_the_pipeline_alone(pipe: Any, rule: str) -> None:
    before = draw(pipe, JOB, NoCacheOptions())[0]
    own = pipe.transformer
    config = [config for name, _, config in configs(2) if name == rule][-1]  # the boldest
    images, share = drawn_by(config)(pipe, JOB)
    assert 0.1 < share < 1.0
    assert images.shape == before.shape
    assert pipe.transformer is own
    assert np.array_equal(draw(pipe, JOB, NoCacheOptions())[0], before)
