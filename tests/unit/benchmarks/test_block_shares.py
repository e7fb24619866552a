"""What blocks add: nothing for a block that is closed by hand, and leaving it out changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.leaving_out import best_left_out, residual_shares, without
from cache_core.options import NoCacheOptions
from raycache.demo.noise import build_noise_model
from raycache.size import Size
from raycache.tune.measures import PSNR_CAP
from raycache.tune.sweep import Job, draw
from tests.helpers.flux_pipe import load

JOB = Job(("a red circle", "a blue star"), 3, Size(64, 64), 2)


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    """Two double blocks and three single ones; of the latter, the second one's gate is always 0."""
    pipe = load(build_noise_model(tmp_path / "noise", layers=2, single_layers=3))
    linear = pipe.transformer.single_transformer_blocks[1].norm.linear
    with torch.no_grad():
        linear.weight[-linear.out_features // 3 :] = 0  # shift, scale, gate
        linear.bias[-linear.out_features // 3 :] = 0
        yield pipe


def test_a_closed_block_adds_nothing_and_is_not_missed(pipe: Any) -> None:
    shares = residual_shares(pipe, JOB)
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(1.0)
    assert shares[3] == 0.0
    assert min(share for index, share in enumerate(shares) if index != 3) > 0.001
    references = draw(pipe, JOB, NoCacheOptions())[0]
    assert without(pipe, JOB, references, [3]) == PSNR_CAP
    assert without(pipe, JOB, references, [2]) < PSNR_CAP
    assert without(pipe, JOB, references, []) == PSNR_CAP, "the blocks are back"


def test_twice_the_gate_is_a_larger_share(pipe: Any) -> None:
    before = residual_shares(pipe, JOB)[4]
    linear = pipe.transformer.single_transformer_blocks[2].norm.linear
    linear.weight[-linear.out_features // 3 :] *= 2
    linear.bias[-linear.out_features // 3 :] *= 2
    after = residual_shares(pipe, JOB)[4]
    # The last block: nothing behind it changes, so it adds exactly twice as much beside the same rest.
    assert after == pytest.approx(2 * before / (1 + before), rel=0.1)


def test_the_best_are_chosen_one_after_another(pipe: Any) -> None:
    references = draw(pipe, JOB, NoCacheOptions())[0]
    choices = list(best_left_out(pipe, JOB, references, 2))
    assert choices[0] == ([3], PSNR_CAP), "the closed block first"
    first, second = choices[1][0]
    assert first == 3
    others = {index: without(pipe, JOB, references, [3, index]) for index in (0, 1, 2, 4)}
    assert others[second] == max(others.values()) == choices[1][1]
