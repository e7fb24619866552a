"""A pipeline that no family describes, with a denoiser that is no transformer: it runs as it is, without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from cache_core import FBCacheOptions, NoCacheOptions
from raycache.models.loading import capabilities_of
from raycache.models.registry import family_of
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import deployment_warnings, resolve
from raycache.protocol.schemas import GenerationRequest
from raycache.settings import AppSettings, ModelSettings
from raycache.testing.tiny_models.autoencoders import image_autoencoder
from raycache.testing.tiny_models.texts import clip, clip_tokenizer
from raycache.worker.active_job import RankContext
from raycache.worker.job_runner import JobRunner
from tests.helpers.jobs import make_job
from tests.helpers.ticks import draw


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    vae: AutoencoderKL = image_autoencoder()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip(32),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_jobs_are_drawn_as_diffusers_draws_them(pipe: StableDiffusionPipeline):
    family = family_of(type(pipe).__name__)
    runner = JobRunner(RankContext(pipe, family, 0, torch.device("cpu"), 77), None)
    jobs = {make_job("a", seeds=(7, 8), steps=3): 0, make_job("b", seeds=(9,), steps=2, prompt="a blue square"): 1}
    drawn = draw(runner, jobs)
    assert not drawn.failures, drawn.failures
    for job in jobs:
        asked: dict[str, Any] = {"num_inference_steps": job.num_inference_steps, "guidance_scale": 3.5, "height": 64}
        for image, output in zip(job.images, drawn.outputs[job.id].images, strict=True):
            generator = torch.Generator().manual_seed(image.seed)
            expected = pipe(job.prompt, width=64, generator=generator, output_type="np", **asked).images[0]
            assert np.abs(output / 255 - expected).max() < 0.5 / 255 + 1e-3
        assert drawn.outputs[job.id].report is None
    assert [len(call.jobs) for call in drawn.calls] == [1] * len(drawn.calls), "nobody knows which arguments are rows"


def test_what_the_service_makes_of_it(pipe: StableDiffusionPipeline):
    model = capabilities_of(pipe, ModelSettings(path="x"), "folder")
    assert (model.num_blocks, model.tasks) == (0, ("text-to-image",))
    settings = AppSettings.model_validate({"model": {"path": "x"}, "parallel": {"ranks_per_replica": 1}})
    assert "StableDiffusionPipeline" in "".join(deployment_warnings(settings, settings.policy, model))
    order = resolve(GenerationRequest(prompt="a"), settings.policy, model, model_name="flux", ranks=1)
    assert order.cache == NoCacheOptions(), "what the deployment prefers cannot be had"
    asked = GenerationRequest(prompt="a", cache=FBCacheOptions())
    with pytest.raises(RequestError, match=r"^cache: the cache does not know the blocks"):
        resolve(asked, settings.policy, model, model_name="flux", ranks=1)
