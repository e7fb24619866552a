"""One job on one rank, from its prompt to its images: its pipeline call, and what is recorded meanwhile."""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cache_core import CacheReport
from raycache.logs import about
from raycache.models.arguments import call, call_arguments, to_uint8
from raycache.models.family import ModelFamily
from raycache.protocol.heartbeat import Phase
from raycache.protocol.job import Job, JobOutput, Progress, stalls
from raycache.protocol.sound import Sound
from raycache.tracing import RankSpans
from raycache.worker.adapters import Adapters
from raycache.worker.encoding import OneEncodes, remember_prompts
from raycache.worker.observer import Observer
from raycache.worker.prompt_cache import PromptCache
from raycache.worker.reports import merged
from raycache.worker.step_ends import StepEnds
from raycache.worker.stepper import Ended, Tail

__all__ = ["ActiveJob", "Place", "RankContext"]

_logger = logging.getLogger("raycache.rank")


@dataclass
class Place:
    """Where a rank is right now; read by the thread that answers heartbeats."""

    jobs: tuple[str, ...] = ()
    phase: Phase = "loading"
    step: int = 0
    calls: int = 0
    collective_wait_s: float = 0.0
    compiling: bool = False

    def compiles(self, now: bool) -> None:
        """Whether torch compiles something, which no prediction knows."""
        self.compiling = now

    def idle(self) -> None:
        """There is nothing to do."""
        self.jobs, self.phase, self.step = (), "idle", 0


@dataclass
class RankContext:
    """What all jobs of a rank share.

    Attributes:
        pipe: a loaded pipeline of ``family``; pipes: for each task the one that does it, none: ``pipe`` does all.
        rank: of this process; 0 tells. world: number of ranks.
        overlaps: images are decoded beside the next calls of the transformer.
        text_tokens: of each prompt.
        prompts: those encoded lately.
        place: is kept up to date.
        vae_lock: held while the VAE is used, by whichever thread.
        adapters: LoRAs that jobs may be drawn with.
        one_encodes: who encodes for all ranks; None: each for itself.
        tiled_over: pixels, those of all frames, over which an image is decoded by tiles that all ranks share.
    """

    pipe: Any
    family: ModelFamily
    rank: int
    device: torch.device
    text_tokens: int
    world: int = 1
    overlaps: bool = False
    prompts: PromptCache = field(default_factory=lambda: PromptCache(0))
    place: Place = field(default_factory=Place)
    observer: Observer = field(default_factory=Observer)
    pipes: Mapping[str, Any] = field(default_factory=dict)
    vae_lock: threading.Lock = field(default_factory=threading.Lock)
    adapters: Adapters | None = None
    one_encodes: OneEncodes | None = None
    tiled_over: float = math.inf

    def now(self) -> float:
        """The time at which all work that this thread handed to the device is done."""
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.monotonic()

    def enter(self, phase: Phase, jobs: Sequence[ActiveJob]) -> None:
        """These jobs are in ``phase`` now; the observer is told."""
        self.at(phase, jobs)
        for active in jobs:
            self.observer.entered(active.job, phase)

    def at(self, phase: Phase, jobs: Sequence[ActiveJob]) -> None:
        """This is what the rank works on, or waits for."""
        self.place.jobs = tuple(active.job.id for active in jobs)
        self.place.phase, self.place.step = phase, jobs[0].step
        for active in jobs:
            if phase != active.phase:
                active.phase = phase
                active.spans.phase(phase)


class ActiveJob:
    """A job between its start and its end.

    Attributes:
        step: finished denoising steps.
        encode_s: until its first call of the transformer; calls_s: of each call that it was in.
        reports: what the cache decided for each denoiser; held_bytes: what it held at the end; progress: rank 0's,
            until it is told.
        sound: once the pipeline has returned.
    """

    def __init__(self, job: Job, context: RankContext) -> None:
        self.job, self._context = job, context
        self.spans = RankSpans(job, context.rank)
        self.phase: Phase = "idle"
        self.step, self.done = 0, False
        self.encode_s, self.calls_s = 0.0, list[float]()
        self.reports: tuple[CacheReport, ...] = ()
        self.held_bytes = 0
        self.progress: list[Progress] = []
        self.sound: Sound | None = None
        self._warnings: list[str] = []
        self._waited_s = 0.0
        self._known_prompt: Callable[[], bool] = bool
        self._tail: Tail | None = None
        self._images: np.ndarray | None = None

    @property
    def pipe(self) -> Any:
        """The pipeline that does the job's task."""
        return self._context.pipes.get(self.job.inputs.task, self._context.pipe)

    @property
    def report(self) -> CacheReport | None:
        """What the cache decided so far; None where it knows no denoiser."""
        return merged(self.reports)

    def draw(self, pipe: Any) -> Any:
        """Call ``pipe``, the job's own view of its pipeline; returns images, floats [n, height, width, 3]."""
        job, context, family = self.job, self._context, self._context.family
        arguments = call_arguments(pipe, family, job, context.text_tokens)
        self._known_prompt = remember_prompts(pipe, context.prompts, context.one_encodes)
        if context.rank == 0:
            self._warnings = family.prompt_warnings(pipe, job.prompt, context.text_tokens)
        returned = call(pipe, arguments | StepEnds(pipe, self._step_done).arguments)
        self.sound = family.sound(pipe, returned)
        return returned[0]

    def called(self, seconds: float) -> float:
        """It was in a call of the transformer; returns the seconds of it that this rank waited for others."""
        self.calls_s.append(seconds)
        before, self._waited_s = self._waited_s, sum(report.collective_wait_s for report in self.reports)
        return self._waited_s - before

    def computed_share(self) -> float:
        """Of the blocks, in its last call; all where nothing is decided."""
        report = self.report
        if self.job.cache.type == "none" or report is None or not report.steps:
            return 1.0
        images = report.steps[-1].images
        return sum(image.computed_blocks for image in images) / (report.num_blocks * len(images))

    def over(self, ended: Ended) -> None:
        """Its pipeline made its last call of a denoiser, and returned or stands where it decodes."""
        self._tail, self.held_bytes, self.done = ended.tail, ended.held_bytes, True
        self._images = None if ended.result is None else to_uint8(ended.result)

    @property
    def tiled(self) -> bool:
        """Whether all ranks decode some tiles of each of its images; all ranks say the same."""
        size, frames = self.job.size, max(1, self.job.inputs.num_frames)
        return self._tail is not None and size.width * size.height * frames > self._context.tiled_over

    def decoded(self, rows: Sequence[int]) -> Any:
        """Of these rows, what the VAE gives; of one that is :attr:`tiled`, this rank's tiles of all rows.

        Other ranks decode others, so nothing in it is a collective.
        """
        context, images = self._context, len(self.job.images)
        context.observer.entered(self.job, "decode")
        if self._tail is None:
            return None
        return self._tail.tiles(images, context.rank, context.world) if self.tiled else self._tail.decode(images, rows)

    def images(self, rows: Sequence[int], decoded: Any) -> dict[int, np.ndarray]:
        """What the pipeline makes of :meth:`decoded`: uint8 [height, width, 3] by row, of a video [frames, ...]."""
        if self._tail is not None and rows:
            return dict(zip(rows, to_uint8(self._tail.finish(decoded)), strict=True))
        self.drop()
        return {} if self._images is None else {row: self._images[row] for row in rows}

    def drop(self) -> None:
        """Nothing more is wanted of it on this rank."""
        if self._tail is not None:
            self._tail.drop()
            self._tail = None

    def output(self) -> JobOutput:
        """What rank 0 says of the job; images and the seconds of decoding come from all ranks."""
        job, denoise_s, report = self.job, sum(self.calls_s), self.report
        words = f"drew {job.size}, {job.steps} steps, in {self.encode_s + denoise_s:.2f} s"
        _logger.info(words, extra=about(job, rank=self._context.rank))
        return JobOutput(
            images=np.empty((0, job.size.height, job.size.width, 3), np.uint8),
            warnings=self._warnings,
            report=None if job.cache.type == "none" or report is None else report.to_dict(),
            encode_s=self.encode_s,
            denoise_s=denoise_s,
            decode_s=0.0,
            stalls_s=stalls(self.calls_s),
            known_prompt=self._known_prompt(),
            held_bytes=self.held_bytes,
        )

    def told(self) -> list[Progress]:
        """Progress since it was told last."""
        events, self.progress = self.progress, []
        return events

    def _step_done(self, pipe: Any, step: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
        """At the end of a step, from 0: the latents around it. Returns others to go on with, None for these."""
        changed = self._context.observer.step_ends(self.job, step, after)
        self.step = step + 1
        if self._context.rank == 0:
            self.progress.append(self._event(pipe, step, before, after))
        return changed

    def _event(self, pipe: Any, step: int, before: torch.Tensor, after: torch.Tensor) -> Progress:
        report = self.report
        decided = report is not None and report.steps and self.job.cache.type != "none"
        decisions = report.steps[-1].images if decided and report is not None else []
        cached = [decision.cached or bool(decision.pruned_blocks) for decision in decisions]
        differences = [decision.residual_diff for decision in decisions]
        steps = self.job.steps
        event = Progress(min(step + 1, steps), steps, cached, differences)
        if step in self.job.preview_steps:
            event.preview = self._preview(pipe, step, before, after)
        return event

    def _preview(self, pipe: Any, step: int, before: torch.Tensor, after: torch.Tensor) -> np.ndarray | None:
        """None where it fails: the other ranks go on, and a preview that finds no memory must not break the gang."""
        job, context = self.job, self._context
        try:
            with context.vae_lock:
                return context.family.preview(_with_real_vae(pipe, context.pipe), before, after, step, job.size)
        except Exception as error:
            _logger.warning(f"no preview: {type(error).__name__}: {error}", extra=about(job, rank=context.rank))
            return None


def _with_real_vae(own: Any, pipe: Any) -> Any:
    """The job's own view, whose VAE decodes here and now."""
    seen = copy.copy(own)
    object.__setattr__(seen, "vae", pipe.vae)
    return seen
