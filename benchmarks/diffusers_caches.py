"""diffusers' own caches on a FLUX transformer, each at settings that compute less and less.

They skip different things: FirstBlockCache and MagCache whole blocks, TaylorSeer, Pyramid Attention Broadcast and
FasterCache the attention in them. So their share of computation is counted in floating-point operations of the
transformer's linear layers and attention. For a method that skips whole blocks that is its share of blocks, within a
few percent.
"""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.workload import sharing_weights
from raycache.models.generating import generate_images
from raycache.tune.sweep import Job

__all__ = ["Config", "configs", "drawn_by"]

#: A cache's config for a pipeline and a job.
Config = Callable[[Any, Job], Any]
#: Its prompt is none of the captions, so MagCache is not calibrated on what it is measured with.
_CALIBRATION = "a large red circle on a white background"
#: Timesteps in which attention may be reused: all but those of the first few steps, as for the others.
_AFTER_WARMUP = (-1, 950)


def configs(warmup: int) -> Iterator[tuple[str, str, Config]]:
    """(rule, setting, config): where a cache knows a warm-up, the first ``warmup`` steps are computed."""
    for threshold in (0.03, 0.06, 0.1, 0.16):
        yield "diffusers FirstBlockCache", str(threshold), partial(_first_block, threshold=threshold)
    for threshold in (0.05, 0.1, 0.2, 0.4):
        yield "diffusers MagCache", str(threshold), partial(_mag_cache, warmup=warmup, threshold=threshold)
    # These leave out parts of blocks, and more than 70 % of the operations remained at every setting that was tried.
    for interval in (2, 5):
        yield "diffusers TaylorSeer", str(interval), partial(_taylor_seer, warmup=warmup, interval=interval)
    for skip in (2, 5):
        yield "diffusers PAB", str(skip), partial(_pyramid, skip=skip)
    for skip in (2, 3):
        yield "diffusers FasterCache", str(skip), partial(_faster, skip=skip)


def drawn_by(config: Config) -> Callable[[Any, Job], tuple[np.ndarray, float]]:
    """Generates a job one image at a time, because these caches decide once for a whole batch; the same seeds as ours.

    The share is of the transformer's floating-point operations.
    """

    def drawn(pipe: Any, job: Job) -> tuple[np.ndarray, float]:
        one = replace(job, prompts=job.prompts[:1])
        whole = _counted(pipe, one, pipe.transformer, lambda: None)[1] * len(job.prompts)
        cached = sharing_weights(pipe.transformer)
        cached.enable_cache(config(pipe, job))
        images, operations = _counted(pipe, job, cached, cached._reset_stateful_cache)
        return images, operations / whole

    return drawn


def _counted(pipe: Any, job: Job, transformer: Any, before: Callable[[], Any]) -> tuple[np.ndarray, float]:
    """The images by ``transformer`` and its floating-point operations; ``before`` is called before each image."""
    own, images, counted = pipe.transformer, [], [0]
    inner = transformer.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        with _counting(counted):
            return inner(*args, **kwargs)

    transformer.forward = counting
    pipe.transformer = transformer
    try:
        for index, prompt in enumerate(job.prompts):
            before()
            images.append(generate_images(pipe, [prompt], [index], steps=job.steps, size=job.size))
    finally:
        pipe.transformer = own
        del transformer.forward
    return np.concatenate(images), counted[0]


@contextlib.contextmanager
def _counting(counted: list[int]) -> Iterator[None]:
    """Add the operations of linear layers and attention to ``counted``. torch's own counter is many times slower."""
    linear, attention = functional.linear, functional.scaled_dot_product_attention

    def counting_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        counted[0] += 2 * (input.numel() // input.shape[-1]) * weight.numel()
        return linear(input, weight, bias)

    def counting_attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        counted[0] += 2 * query.numel() * key.shape[-2] * 2
        return attention(query, key, value, *args, **kwargs)

    functional.linear, functional.scaled_dot_product_attention = counting_linear, counting_attention
    try:
        yield
    finally:
        functional.linear, functional.scaled_dot_product_attention = linear, attention


def _first_block(_pipe: Any, _job: Job, *, threshold: float) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=threshold)


def _taylor_seer(_pipe: Any, _job: Job, *, warmup: int, interval: int) -> Any:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warmup,
        max_order=1,
        taylor_factors_dtype=torch.float32,
    )


def _mag_cache(pipe: Any, job: Job, *, warmup: int, threshold: float) -> Any:
    from diffusers import MagCacheConfig

    settings: dict[str, Any] = {"num_inference_steps": job.steps, "retention_ratio": warmup / job.steps}
    return MagCacheConfig(
        threshold=threshold, max_skip_steps=4, mag_ratios=_mag_ratios(pipe, job, settings), **settings
    )


def _mag_ratios(pipe: Any, job: Job, settings: dict[str, Any]) -> list[float]:
    """The model's ratios, which diffusers measures in one image and prints."""
    from diffusers import MagCacheConfig

    own, pipe.transformer = pipe.transformer, sharing_weights(pipe.transformer)
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, **settings))
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            generate_images(pipe, [_CALIBRATION], [0], steps=job.steps, size=job.size)
    finally:
        pipe.transformer = own
    listed = next(line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]"))
    return [float(ratio) for ratio in ast.literal_eval(listed)]


def _pyramid(pipe: Any, _job: Job, *, skip: int) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=skip,
        spatial_attention_timestep_skip_range=_AFTER_WARMUP,
        current_timestep_callback=lambda: int(pipe.current_timestep),
    )


def _faster(pipe: Any, _job: Job, *, skip: int) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=skip,
        spatial_attention_timestep_skip_range=_AFTER_WARMUP,
        spatial_attention_block_identifiers=("transformer_blocks", "single_transformer_blocks"),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        tensor_format="BCHW",
        current_timestep_callback=lambda: int(pipe.current_timestep),
    )
