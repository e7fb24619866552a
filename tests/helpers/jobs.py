"""Jobs that tests pass to gangs and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_core import NoCacheOptions
from raycache.protocol.job import Job, one_per_seed
from raycache.size import Size


def make_job(
    id: str = "1",
    *,
    size: str = "64x64",
    seeds: Sequence[int] = (7,),
    steps: int = 4,
    prompt: str = "a red circle",
    guidance_scale: float = 3.5,
    cache: Any = None,
    negative_prompt: str = "",
    true_cfg_scale: float = 1.0,
    **fields: Any,
) -> Job:
    """A small job, without a cache unless ``cache`` is given; ``fields``: other fields of :class:`Job`."""
    return Job(
        id=id,
        size=Size.parse(size),
        images=one_per_seed(
            seeds,
            prompt=prompt,
            guidance_scale=guidance_scale,
            cache=NoCacheOptions() if cache is None else cache,
            negative_prompt=negative_prompt,
            true_cfg_scale=true_cfg_scale,
        ),
        num_inference_steps=steps,
        **fields,
    )
