"""A job is a shape and its images, which one call of the pipeline can draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache_core import DBCacheOptions, NoCacheOptions
from raycache.protocol.job import ImageSpec, Job, one_per_seed
from tests.helpers.jobs import make_job

SECRET = "a prompt that no log may have"


def test_images_differ_in_their_seeds_only():
    images = one_per_seed(range(7, 9), prompt="a circle", guidance_scale=1.5, cache=DBCacheOptions())
    assert images == tuple(ImageSpec("a circle", seed, 1.5, DBCacheOptions()) for seed in (7, 8))
    job = replace(make_job(), images=images)
    assert (job.prompt, job.cache) == ("a circle", DBCacheOptions())


@pytest.mark.parametrize(
    "changed",
    [{"prompt": SECRET}, {"guidance_scale": 9.0}, {"cache": DBCacheOptions()}],
    ids=lambda changed: next(iter(changed)),
)
def test_images_that_one_call_cannot_draw_are_no_job(changed: dict[str, object]):
    """The ranks would draw them all with what the first one asks."""
    job = make_job("j-1", seeds=(1, 2, 3), cache=NoCacheOptions())
    with pytest.raises(ValueError, match=f"images of job j-1 differ in {next(iter(changed))}") as caught:
        replace(job, images=(*job.images[:2], replace(job.images[2], **changed)))
    assert SECRET not in str(caught.value)


def test_a_job_has_an_image():
    with pytest.raises(ValueError, match="job j-1 has no images"):
        make_job("j-1", seeds=())


def test_no_repr_shows_the_prompt():
    job: Job = make_job(prompt=SECRET)
    assert SECRET not in repr(job)
