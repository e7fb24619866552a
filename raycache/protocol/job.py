"""A job for a gang, and its result."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cache_core.options import CacheOptions
from raycache.protocol.capabilities import Task
from raycache.protocol.lora import LoraChoice
from raycache.protocol.sound import Sound
from raycache.size import Size

__all__ = ["TEXT_ONLY", "GangStatus", "ImageSpec", "Job", "JobInputs", "JobOutput"]
__all__ += ["JobProgress", "Progress", "Recovery", "Trace", "made_steps", "one_per_seed", "stalls"]


def stalls(step_s: Sequence[float]) -> float:
    """Total excess of steps that took far longer than the others: a first one allocates, another may compile."""
    if len(step_s) < 2:
        return 0.0
    usual = statistics.median(step_s[1:])
    return sum(max(0.0, seconds - 2 * usual) for seconds in step_s)


def made_steps(steps: int, strength: float | None) -> int:
    """Denoising steps that diffusers runs of ``steps``: when starting from an image the first ones are skipped.

    >>> made_steps(10, 0.6), made_steps(10, None)
    (6, 10)
    """
    if strength is None:
        return steps
    return steps - int(max(steps - min(steps * strength, steps), 0))


@dataclass(frozen=True)
class Trace:
    """The trace of a rank's spans: ``parent`` is W3C's ``traceparent``; ``exporter`` the import path of Serve's."""

    parent: str
    exporter: str


@dataclass(frozen=True)
class ImageSpec:
    """One image of a job.

    Attributes:
        seed: seed of its noise, which depends on nothing else.
        cache: the cache's options; their type is the method.
        negative_prompt: what to avoid, for models that take one.
        true_cfg_scale: guidance away from it, for models with an embedded guidance; 1 = none.
    """

    prompt: str = field(repr=False)
    seed: int
    guidance_scale: float
    cache: CacheOptions
    negative_prompt: str = field(default="", repr=False)
    true_cfg_scale: float = 1.0


def one_per_seed(
    seeds: Iterable[int],
    *,
    prompt: str,
    guidance_scale: float,
    cache: CacheOptions,
    negative_prompt: str = "",
    true_cfg_scale: float = 1.0,
) -> tuple[ImageSpec, ...]:
    """Images that differ only in their seeds."""
    return tuple(ImageSpec(prompt, seed, guidance_scale, cache, negative_prompt, true_cfg_scale) for seed in seeds)


@dataclass(frozen=True)
class JobInputs:
    """The inputs of a job other than its prompt: none for text to image.

    Attributes:
        task: the task.
        images: uint8 [height, width, 3] each; the same arrays on every rank.
        mask: uint8 [height, width] for the first image; 255 where it is generated again, 0 where it is kept.
        strength: how much of the first image is replaced, above 0 up to 1; only this share of the steps is run.
        num_frames: frames of a video; 1 for images.
    """

    task: Task = "text-to-image"
    images: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)
    strength: float | None = None
    num_frames: int = 1


#: The inputs of a job with only a prompt.
TEXT_ONLY = JobInputs()


@dataclass(frozen=True)
class Job:
    """One validated request with everything a rank needs: the images, and what they share.

    Ranks generate all images as rows of one pipeline call, with one session of the cache. So they may differ only
    in their seeds, and :attr:`prompt` and :attr:`cache` apply to all of them.

    Attributes:
        images: each is one row of the job's transformer calls.
        preview_steps: steps, from 0, after which rank 0 decodes a small preview.
        request_id: the request's id, for logs; need not be unique.
        trace: the request's trace context, if it is traced.
        inputs: images and other inputs of the task.
        calls_per_step: transformer calls per step; two if the negative prompt has separate calls.
        lora: the LoRA that the transformer uses.

    Raises:
        ValueError: no image, or images that differ in more than their seeds.
    """

    id: str
    size: Size
    images: tuple[ImageSpec, ...]
    num_inference_steps: int
    preview_steps: tuple[int, ...] = ()
    request_id: str = ""
    trace: Trace | None = None
    inputs: JobInputs = TEXT_ONLY
    calls_per_step: int = 1
    lora: LoraChoice | None = None

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError(f"job {self.id} has no images; it needs at least one")
        for name in ("prompt", "guidance_scale", "cache", "negative_prompt", "true_cfg_scale"):
            first, *others = (getattr(image, name) for image in self.images)
            if any(other != first for other in others):
                raise ValueError(f"images of job {self.id} differ in {name}: they may differ only in seed")

    @property
    def steps(self) -> int:
        """Denoising steps that are run; fewer than :attr:`num_inference_steps` with ``strength``."""
        return made_steps(self.num_inference_steps, self.inputs.strength)

    @property
    def prompt(self) -> str:
        """The prompt of every image."""
        return self.images[0].prompt

    @property
    def cache(self) -> CacheOptions:
        """The cache options of every image."""
        return self.images[0].cache


@dataclass
class JobOutput:
    """Images, uint8 [n, height, width, 3] (videos [n, frames, height, width, 3]), the cache report, seconds per stage.

    ``warnings``: unusual properties of the prompt. ``denoise_s``: seconds of its transformer calls, shared or not.
    ``after_fault_s``: for the first job after a fault, seconds since the fault was noticed. ``stalls_s``: the part of
    ``denoise_s`` in steps that took far longer than the others. ``shared``: how many of its calls had rows of other
    jobs. ``known_prompt``: its embeddings were cached. ``held_bytes``: size of its cache on one rank, at the end.
    ``sound``: of the first video, if the model generates any.
    """

    images: np.ndarray
    report: dict[str, Any] | None
    encode_s: float
    denoise_s: float
    decode_s: float
    warnings: list[str] = field(default_factory=list)
    after_fault_s: float | None = None
    stalls_s: float = 0.0
    shared: int = 0
    known_prompt: bool = False
    held_bytes: int = 0
    sound: Sound | None = None


@dataclass
class Progress:
    """One denoising step is done: ``step`` of ``steps`` (from 1), per image whether it was cached, and its difference.

    ``preview`` is uint8 [n, height, width, 3] of a smaller image, after steps with a preview.
    """

    step: int
    steps: int
    cached: list[bool]
    residual_diff: list[float | None]
    preview: np.ndarray | None = None


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job that anyone may see: it has neither its caller nor its content.

    Attributes:
        size: ``WIDTHxHEIGHT`` in pixels.
        images: number of images generated together.
        step: finished denoising steps of ``steps``; all of them during decoding.
    """

    size: str
    images: int
    step: int
    steps: int


@dataclass
class Recovery:
    """One fault and its recovery; seconds since it was noticed, except ``noticed_at``.

    Attributes:
        kind: ``death``, ``hang`` or ``error``.
        noticed_at: ``time.time()`` when it was noticed.
        killed_s: until all old ranks had ended.
        ready_s: until the new ranks were ready; None before.
        image_s: until the next job was done; None before.
        stages: seconds of the rebuild by stage, as in :class:`GangStatus`.
    """

    kind: str
    noticed_at: float
    killed_s: float | None = None
    ready_s: float | None = None
    image_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class GangStatus:
    """The status of a gang; made without calling a rank.

    Attributes:
        ready: ranks are loaded, none is being replaced; ``ready_in_s``: seconds until then, as it took last time.
        restarts: incarnations after the first; ``causes`` has them by kind of fault.
        jobs: ids of active jobs, which all advance step by step. ``progress``: the progress of each.
        retries: jobs rerun after a fault; ``retry_causes`` has them by kind of fault.
        faults: description of each fault, newest last, at most ten.
        ranks: each rank's last heartbeat, and its age in seconds.
        last_recovery: times of the last fault's recovery, see :class:`Recovery`.
        stages: seconds of the latest start: processes (Python and torch), rendezvous, import (the pipeline's
            libraries), read (weights), copy (to the device), split (over the ranks, and its check), compile, warm-up.
    """

    name: str
    ready: bool
    restarts: int
    queued: int
    jobs: list[str]
    progress: list[JobProgress] = field(default_factory=list)
    retries: int = 0
    retry_causes: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last_recovery: Recovery | None = None
    ready_in_s: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
