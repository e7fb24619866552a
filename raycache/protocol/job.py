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
    """Seconds by which some steps took far longer than the others: a first one allocates, another may compile."""
    if len(step_s) < 2:
        return 0.0
    usual = statistics.median(step_s[1:])
    return sum(max(0.0, seconds - 2 * usual) for seconds in step_s)


def made_steps(steps: int, strength: float | None) -> int:
    """Denoising steps that diffusers makes of ``steps``: from a picture the first ones are left out.

    >>> made_steps(10, 0.6), made_steps(10, None)
    (6, 10)
    """
    if strength is None:
        return steps
    return steps - int(max(steps - min(steps * strength, steps), 0))


@dataclass(frozen=True)
class Trace:
    """Where a rank's spans belong: ``parent`` is W3C's ``traceparent``; ``exporter`` the import path of Serve's."""

    parent: str
    exporter: str


@dataclass(frozen=True)
class ImageSpec:
    """One image of a job.

    Attributes:
        seed: of its noise, which depends on nothing else.
        cache: how blocks may be left out; the type says the method.
        negative_prompt: what the image is guided away from, where the model reads one.
        true_cfg_scale: how far, for models with an embedded guidance besides; 1 = not at all.
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
    """Images that are alike but for their seeds."""
    return tuple(ImageSpec(prompt, seed, guidance_scale, cache, negative_prompt, true_cfg_scale) for seed in seeds)


@dataclass(frozen=True)
class JobInputs:
    """What a job begins with besides its prompt: for text to image, nothing.

    Attributes:
        task: what is made of it.
        pictures: uint8 [height, width, 3] each; the same arrays on every rank.
        mask: uint8 [height, width] of the first picture; 255 where it is drawn anew, 0 where it is kept.
        strength: how much of the first picture is given up, above 0 to 1; only steps of that share are made.
        num_frames: of a video; 1 for images.
    """

    task: Task = "text-to-image"
    pictures: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    mask: np.ndarray | None = field(default=None, repr=False, compare=False)
    strength: float | None = None
    num_frames: int = 1


#: Of a job that begins with nothing but a prompt.
TEXT_ONLY = JobInputs()


@dataclass(frozen=True)
class Job:
    """One validated request, everything a rank needs: the images, and what they share.

    Ranks draw all images as rows of one call of the pipeline, with one session of the cache. So they may differ in
    their seeds only, and :attr:`prompt` and :attr:`cache` are those of each.

    Attributes:
        images: as many rows are the job's in a call of the transformer.
        preview_steps: steps, from 0, after which rank 0 decodes a small preview.
        request_id: of the request, for logs; need not be unique.
        trace: of the request, where it is traced.
        inputs: pictures and what else the task begins with.
        calls_per_step: of the transformer; two where what it is guided away from has calls of its own.
        lora: that the transformer computes with.

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
            raise ValueError(f"job {self.id} has no images, and needs one at least")
        for name in ("prompt", "guidance_scale", "cache", "negative_prompt", "true_cfg_scale"):
            first, *others = (getattr(image, name) for image in self.images)
            if any(other != first for other in others):
                raise ValueError(f"images of job {self.id} differ in {name}: they must be alike in all but seed")

    @property
    def steps(self) -> int:
        """Denoising steps that are made; fewer than :attr:`num_inference_steps` from a picture with ``strength``."""
        return made_steps(self.num_inference_steps, self.inputs.strength)

    @property
    def prompt(self) -> str:
        """Of every image."""
        return self.images[0].prompt

    @property
    def cache(self) -> CacheOptions:
        """Of every image."""
        return self.images[0].cache


@dataclass
class JobOutput:
    """Images, uint8 [n, height, width, 3] (videos [n, frames, height, width, 3]), the cache report, seconds per stage.

    ``warnings``: what was odd about the prompt. ``denoise_s``: of the transformer calls that it was in, whoever shared
    them. ``after_fault_s``: in the first image after a fault, seconds since that was noticed. ``stalls_s``: how much
    of ``denoise_s`` went to steps that took far longer than the others. ``shared``: of its calls, how many had rows of
    other jobs. ``known_prompt``: it was encoded for an earlier job. ``held_bytes``: of the cache on one rank, at
    the end. ``sound``: of the first video, where the model makes any.
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
    """One denoising step is done: ``step`` of ``steps`` (from 1), per image whether it was cached and its difference.

    ``preview`` is uint8 [n, height, width, 3] of a smaller image, at the steps that asked for one.
    """

    step: int
    steps: int
    cached: list[bool]
    residual_diff: list[float | None]
    preview: np.ndarray | None = None


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, for everybody who may ask: it says nothing of whose it is and what is drawn.

    Attributes:
        size: ``WIDTHxHEIGHT`` in pixels.
        images: that are drawn at once.
        step: denoising steps done, of ``steps``; all of them while it is decoded.
    """

    size: str
    images: int
    step: int
    steps: int


@dataclass
class Recovery:
    """One fault and what followed it; seconds from noticing it, but for ``noticed_at``.

    Attributes:
        kind: ``death``, ``hang`` or ``error``.
        noticed_at: ``time.time()`` when it was noticed.
        killed_s: until all old ranks were gone.
        ready_s: until the new ranks were ready; None while they are not.
        picture_s: until the next image was done; None before.
        stages: seconds of the rebuild by stage, as in :class:`GangStatus`.
    """

    kind: str
    noticed_at: float
    killed_s: float | None = None
    ready_s: float | None = None
    picture_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class GangStatus:
    """The gang as it sees itself; made without calling a rank.

    Attributes:
        ready: ranks are loaded, no recovery is under way; ``ready_in_s``: seconds until then, as it took last time.
        restarts: incarnations after the first; ``causes`` has them by kind of fault.
        jobs: that ranks have, by id; all of them get on, step by step. ``progress``: how far each of them is.
        retries: jobs that were run again after a fault; ``retry_causes`` has them by its kind.
        faults: what was wrong each time, newest last, at most ten.
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
