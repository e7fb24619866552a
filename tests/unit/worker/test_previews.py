"""A preview shows what the image is becoming, as told by what it becomes: the bundled model draws things."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raycache.demo import demo_model_path
from raycache.models.arguments import pipelines_of
from raycache.models.registry import family_of
from raycache.protocol.job import JobInputs
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.flux_pipe import load
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw


def halved(image: np.ndarray) -> np.ndarray:
    """[height, width, 3] to half of both sides."""
    height, width, _ = image.shape
    return image.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))


@pytest.mark.slow
def test_previews_near_the_end_are_nearly_the_image():
    pipe = load(demo_model_path()).to(torch.float32)
    family = family_of("FluxPipeline", "demo")
    runner = JobRunner(RankContext(pipe, family, 0, torch.device("cpu"), family.text_tokens(pipe)), None)
    job = make_job(size="128x128", steps=8, prompt="a red circle left of a blue square", preview_steps=(0, 3, 6))
    other = make_job("2", size="128x128", steps=5, prompt="a green triangle", seeds=(3,))
    drawn = draw(runner, {job: 0, other: 2})
    image = halved(drawn.outputs["1"].images[0])
    previews = [event.preview[0].astype(float) for event in drawn.progress["1"] if event.preview is not None]
    assert [preview.shape for preview in previews] == [(64, 64, 3)] * 3
    far = np.abs(halved(drawn.outputs["2"].images[0]) - image).mean()
    distances = [np.abs(preview - image).mean() for preview in previews]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.25 * far


@pytest.mark.slow
def test_previews_from_an_image_begin_where_it_does():
    """With `strength` the first steps are left out, and the scheduler's sigmas stay those of all."""
    pipe = load(demo_model_path()).to(torch.float32)
    family = family_of("FluxPipeline", "demo")
    context = RankContext(
        pipe, family, 0, torch.device("cpu"), family.text_tokens(pipe), pipes=pipelines_of(pipe, family)
    )
    runner = JobRunner(context, None)
    # Without guidance: what a guided step tells of the end is exaggerated.
    job = make_job(size="128x128", steps=8, prompt="a red circle left of a blue square", guidance_scale=1.0)
    image = draw(runner, {job: 0}).outputs["1"].images[0]
    inputs = JobInputs("image-to-image", images=(image,), strength=0.5)
    again = make_job(
        "2", size="128x128", steps=8, prompt=job.prompt, inputs=inputs, preview_steps=(0, 2), guidance_scale=1.0
    )
    drawn = draw(runner, {again: 0})
    end = halved(drawn.outputs["2"].images[0])
    previews = [event.preview[0].astype(float) for event in drawn.progress["2"] if event.preview is not None]
    distances = [np.abs(preview - end).mean() for preview in previews]
    assert max(distances) < 7.5, "the halves of both are 6 apart at best"
