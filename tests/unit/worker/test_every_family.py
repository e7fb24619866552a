"""Every family and task: what a rank draws step by step is what diffusers' own call of the task's pipeline gives."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cache_core import FBCacheOptions
from raycache.models.arguments import pipelines_of
from raycache.models.registry import family_of
from raycache.protocol.job import Job
from raycache.testing.tiny_models import TINY_FAMILIES
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.ticks import draw
from tests.helpers.tiny_models import CASES, load_tiny, tiny_folder, tiny_job, tiny_pipe

#: Drawn in every quick run; the others are like one of them, or take seconds.
QUICK = {
    ("flux", "text-to-image"),
    ("flux", "image-to-image"),
    ("flux-kontext", "edit"),
    ("flux-fill", "inpaint"),
    ("flux3", "edit"),
    ("qwen-image", "text-to-image"),
    ("z-image", "text-to-image"),
    ("sd3", "inpaint"),
    ("wan-2.2", "text-to-video"),
    ("wan-i2v", "image-to-video"),
    ("hunyuan-video-1.5", "text-to-video"),
}
ALL = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]


def runner_of(name: str) -> JobRunner:
    pipe, family = tiny_pipe(name), family_of(TINY_FAMILIES[name].pipeline)
    text = TINY_FAMILIES[name].ask.get("max_sequence_length", 512)
    device = torch.device("cpu")
    return JobRunner(RankContext(pipe, family, 0, device, text, pipes=pipelines_of(pipe, family)), None)


def as_diffusers_does(name: str, job: Job) -> np.ndarray:
    """The task's own pipeline, called as its documentation says; nothing of ours but the names of arguments."""
    tiny, inputs, image = TINY_FAMILIES[name], job.inputs, job.images[0]
    if "Modular" in tiny.pipeline:
        return as_diffusers_blocks_do(name, job)
    pipe = getattr(diffusers, family_of(tiny.pipeline).tasks[inputs.task]).from_pipe(tiny_pipe(name))
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipe).__call__).parameters
    asked: dict[str, Any] = {**tiny.ask, "prompt": job.prompt, "num_inference_steps": job.num_inference_steps}
    asked["output_type"] = "np"
    asked |= {"guidance_scale": 4.0} if "guidance_scale" in known and "true_cfg_scale" not in known else {}
    asked |= {"guidance_scale": 4.0} if name.startswith("flux") and "guidance_scale" in known else {}
    asked |= {"negative_prompt": image.negative_prompt} if image.negative_prompt else {}
    asked |= {"true_cfg_scale": 4.0} if image.true_cfg_scale > 1 else {}
    asked |= {"image": Image.fromarray(inputs.images[0])} if inputs.images else {}
    asked |= {"mask_image": Image.fromarray(inputs.mask)} if inputs.mask is not None else {}
    asked |= {"strength": inputs.strength or 1.0} if "strength" in known else {}
    asked |= {"output_resolution": 64} if "output_resolution" in known else {}
    images = []
    for seed in (each.seed for each in job.images):  # one by one, which every pipeline can
        asked["generator"] = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            images.append(np.asarray(pipe(**{key: value for key, value in asked.items() if key in known})[0])[0])
    return np.stack(images)[..., :3]


def as_diffusers_blocks_do(name: str, job: Job) -> np.ndarray:
    """As :func:`as_diffusers_does`, of a modular pipeline: the blocks choose by what is given to them."""
    pipe, image, given = load_tiny(tiny_folder(name)), job.images[0], job.inputs.images
    if hasattr(pipe, "guider"):
        pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=4.0))
    asked: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": job.num_inference_steps}
    asked |= {"negative_prompt": image.negative_prompt} if image.negative_prompt else {}
    asked |= {"image": Image.fromarray(given[0])} if given else {}
    images = []
    for each in job.images:
        chance = torch.Generator().manual_seed(each.seed)
        drawn = pipe(prompt=job.prompt, generator=chance, output_type="np", output="images", **asked)
        images.append(np.asarray(drawn)[0])
    return np.stack(images)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), ALL)
def test_a_rank_draws_what_diffusers_draws(name: str, task: Any):
    job = tiny_job(name, task, seeds=(7, 11), steps=3)
    drawn = draw(runner_of(name), {job: 0})
    assert not drawn.failures, drawn.failures
    expected = as_diffusers_does(name, job)
    assert np.abs(drawn.outputs["1"].images / 255 - expected).max() < 0.5 / 255 + 1e-3
    assert [event.step for event in drawn.progress["1"]] == list(range(1, job.steps + 1))
    assert expected[0].std() > 0.02
    assert np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [case for case in ALL if case.values != ("flux", "inpaint")])
def test_jobs_at_different_steps_are_what_each_is_alone_and_the_cache_works(name: str, task: Any):
    options = FBCacheOptions(warmup_steps=1, residual_diff_threshold=5.0, max_cached_steps=1)
    jobs = {
        tiny_job(name, task, "a", (7,), steps=5, cache=options): 0,
        tiny_job(name, task, "b", (8,), steps=4, cache=options): 1,
    }
    drawn = draw(runner_of(name), jobs)
    assert not drawn.failures, drawn.failures
    for job in jobs:
        alone = draw(runner_of(name), {job: 0}).outputs[job.id]
        together = drawn.outputs[job.id]
        assert np.abs(together.images.astype(int) - alone.images).max() <= 1
        assert [step["images"][0]["cached"] for step in together.report["steps"]] == [
            step["images"][0]["cached"] for step in alone.report["steps"]
        ]
        assert sum(alone.report["totals"]["cached_steps"]) >= 1


@pytest.mark.slow
def test_a_guider_that_keeps_a_mean_keeps_each_jobs_own(monkeypatch: pytest.MonkeyPatch):
    name, task = "hunyuan-image", "text-to-image"
    monkeypatch.setattr(tiny_pipe(name).guider, "adaptive_projected_guidance_start_step", 1)
    jobs = {tiny_job(name, task, "a", (7,), steps=5): 0, tiny_job(name, task, "b", (8,), steps=5): 2}
    drawn = draw(runner_of(name), jobs)
    for job in jobs:
        alone = draw(runner_of(name), {job: 0}).outputs[job.id]
        assert np.abs(drawn.outputs[job.id].images.astype(int) - alone.images).max() <= 1
