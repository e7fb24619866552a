"""One call for every tool: it draws what the pipeline draws by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycache.demo.noise import build_noise_model
from raycache.models.generating import generate_images
from raycache.size import Size
from tests.helpers.flux_pipe import load


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("models") / "noise"
    return load(build_noise_model(folder, layers=1, single_layers=2))


def test_images_are_those_of_the_pipeline_by_hand(pipe: Any):
    prompts, seeds = ["a red circle", "a blue star", "a red circle"], [3, 8, 5]
    by_hand = pipe(
        prompts,
        width=96,
        height=64,
        num_inference_steps=3,
        max_sequence_length=64,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    images = generate_images(pipe, prompts, seeds, steps=3, size=Size(96, 64))
    assert images.shape == (3, 64, 96, 3)
    assert np.array_equal(images, (by_hand * 255).round().astype(np.uint8))


def test_true_cfg_is_the_pipelines_own(pipe: Any):
    by_hand = pipe(
        ["a red circle", "a blue star"],
        negative_prompt=["", ""],
        true_cfg_scale=3.0,
        width=64,
        height=64,
        num_inference_steps=2,
        max_sequence_length=64,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 8)],
        output_type="np",
    ).images
    images = generate_images(
        pipe, ["a red circle", "a blue star"], [3, 8], steps=2, size=Size(64, 64), true_cfg_scale=3
    )
    assert np.array_equal(images, (by_hand * 255).round().astype(np.uint8))
    plain = generate_images(pipe, ["a red circle", "a blue star"], [3, 8], steps=2, size=Size(64, 64))
    assert not np.array_equal(images, plain)


def test_true_cfg_is_refused_by_a_pipeline_without_it(pipe: Any):
    class Flux2Pipeline:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(ValueError, match="Flux2Pipeline has no true CFG"):
        generate_images(Flux2Pipeline(), [], [], steps=2, size=Size(64, 64), true_cfg_scale=3)


def test_a_prompt_without_a_seed_is_told(pipe: Any):
    with pytest.raises(ValueError, match="2 prompts, 1 seeds"):
        generate_images(pipe, ["a", "b"], [1], steps=3, size=Size(96, 64))
