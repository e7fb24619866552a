"""Runs before a gang is ready: the declared shapes, and a probe that separates fixed costs from growing ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cache_core.options import CacheOptions, NoCacheOptions
from raycache.gang.step_timeouts import beyond_warmup
from raycache.presets.auto import concrete
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import Job, JobInputs, one_per_seed
from raycache.protocol.sizes import nearest_sizes
from raycache.settings import AppSettings
from raycache.size import Size

__all__ = ["WarmUp", "warm_ups"]

_PROBE_STEPS = 2
_SMALLEST = 64
#: Images of the probe that tells what a row more costs.
_ROWS = 4


@dataclass(frozen=True)
class WarmUp:
    """A job that nobody asked for. ``teaches``: its times say something of later jobs."""

    job: Job
    teaches: bool = True


def warm_ups(settings: AppSettings, model: Capabilities, *, probe: bool) -> list[WarmUp]:
    """The declared shapes, past the cache's own warm-up, so that no user waits for a compiler, nor the watchdog.

    Args:
        probe: nothing is known of this model's times. One size cannot tell what a job costs at any size from what it
            costs per pixel, so another is run too, in two steps. Nor can one image tell what several in one call cost:
            the smallest size is run once more, with more images, if a call may hold several at all.

    Compiled blocks have one graph for one image and another for several, so both kinds are run wherever a call may hold
    several, whatever is declared.
    """
    options, declared = concrete(settings.cache, None), settings.warmup
    past = beyond_warmup(options)
    drawn = [
        WarmUp(
            _job(settings, model, shape.size, shape.n, max(shape.num_inference_steps, past), options, shape.num_frames)
        )
        for shape in declared
    ]
    probed = _probe_size(settings, model)
    job = _job(settings, model, probed, 1, _PROBE_STEPS, NoCacheOptions())
    smallest = min((probed, *(shape.size for shape in declared)), key=lambda size: size.tokens(model.token_side))
    probes = [job]
    if _holds_several(settings):
        probes.append(_job(settings, model, smallest, _ROWS, _PROBE_STEPS, NoCacheOptions()))
    # The very first job of a process loads libraries and allocates; where nothing is declared, that is the probe's.
    first = drawn or [WarmUp(job, teaches=False)] * (probe or settings.compiles)
    if settings.compiles:
        first += [WarmUp(each, teaches=False) for each in probes if not any(_alike(each, one.job) for one in first)]
    return [*first, *map(WarmUp, probes)] if probe else first


def _holds_several(settings: AppSettings) -> bool:
    """Whether a call may hold several images: of one request, which ``max_rows`` does not split, or of several."""
    return settings.parallel.max_rows > 1 or settings.limits.max_images > 1


def _alike(job: Job, other: Job) -> bool:
    """Whether compiled blocks have the same graph for both."""
    return (len(job.images) > 1) == (len(other.images) > 1)


def _probe_size(settings: AppSettings, model: Capabilities) -> Size:
    """The smallest size, if that is much less work than what is declared; else one that is much more."""
    tokens = [shape.size.tokens(model.token_side) for shape in settings.warmup]
    side = _SMALLEST
    if tokens and max(tokens) < 2 * model.text_tokens:
        while Size(side, side).tokens(model.token_side) < 4 * max(model.text_tokens, *tokens):
            side *= 2
    most = settings.limits.max_pixels
    while side**2 > most and side > model.token_side:
        side //= 2
    ranks = settings.parallel.ranks_per_replica
    return nearest_sizes(
        Size(side, side), side=model.token_side, ranks=ranks, max_pixels=4 * side**2, uneven=model.uneven
    )[0]


def _job(
    settings: AppSettings,
    model: Capabilities,
    size: Size,
    images: int,
    steps: int,
    options: CacheOptions,
    frames: int = 1,
) -> Job:
    """For the model's first task, with what that needs: a grey image, all of it to be drawn anew, few frames."""
    guidance, true_cfg = settings.defaults.guidance_scale, settings.defaults.true_cfg_scale if model.true_cfg else 1.0
    task = model.tasks[0]
    grey = np.full((size.height, size.width, 3), 128, np.uint8)
    inputs = JobInputs(
        task,
        images=() if task.startswith("text-") else (grey,),
        mask=np.full(grey.shape[:2], 255, np.uint8) if task == "inpaint" else None,
        num_frames=_frames(frames, model.frame_step),
    )
    return Job(
        id=f"warm-up-{size}-{images}",
        size=size,
        images=one_per_seed(
            range(images),
            prompt="warm-up",
            guidance_scale=guidance,
            cache=options if model.num_blocks else NoCacheOptions(),
            true_cfg_scale=true_cfg,
        ),
        num_inference_steps=steps,
        inputs=inputs,
        calls_per_step=model.calls_per_step(guidance, true_cfg),
    )


def _frames(wanted: int, step: int) -> int:
    """The next legal number, of those that are videos; 1 for images."""
    return step * max(1, math.ceil((wanted - 1) / step)) + 1 if step else 1
