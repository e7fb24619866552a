"""One job on one rank, from its prompt to its images: its pipeline call, and what is recorded about it."""

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
    """What a rank is doing now; read by the thread that answers heartbeats."""

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
        """The rank has nothing to do."""
        self.jobs, self.phase, self.step = (), "idle", 0


@dataclass
class RankContext:
    """Shared by all jobs of a rank.

    Attributes:
        pipe: a loaded pipeline of ``family``; pipes: by task; if empty, ``pipe`` does all tasks.
        rank: of this process; rank 0 reports. world: number of ranks.
        overlaps: images are decoded in parallel with the next calls of the transformer.
        text_tokens: tokens of each prompt.
        prompts: cache of recently encoded prompts.
        place: what this rank is doing now.
        vae_lock: held by any thread while it uses the VAE.
        adapters: the LoRAs that jobs may use.
        one_encodes: the rank that encodes for all; None: each encodes for itself.
        tiled_over: pixels, over all frames, above which all ranks share an image's decoding by tiles.
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
        """Wait until all work that this thread gave to the device is done; return the time."""
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.monotonic()

    def enter(self, phase: Phase, jobs: Sequence[ActiveJob]) -> None:
        """These jobs enter ``phase``; notify the observer."""
        self.at(phase, jobs)
        for active in jobs:
            self.observer.entered(active.job, phase)

    def at(self, phase: Phase, jobs: Sequence[ActiveJob]) -> None:
        """Record what the rank works on or waits for."""
        self.place.jobs = tuple(active.job.id for active in jobs)
        self.place.phase, self.place.step = phase, jobs[0].step
        for active in jobs:
            if phase != active.phase:
                active.phase = phase
                active.spans.phase(phase)


class ActiveJob:
    """A job from its start to its end.

    Attributes:
        step: finished denoising steps.
        encode_s: seconds until its first call of the transformer; calls_s: seconds of each call that it took part in.
        reports: the cache's decisions for each denoiser; held_bytes: what it held at the end; progress: rank 0's,
            not reported yet.
        sound: available once the pipeline has returned.
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
        """The pipeline for the job's task."""
        return self._context.pipes.get(self.job.inputs.task, self._context.pipe)

    @property
    def report(self) -> CacheReport | None:
        """The cache's decisions so far; None if it knows none of the denoisers."""
        return merged(self.reports)

    def draw(self, pipe: Any) -> Any:
        """Call ``pipe``, the job's own view of its pipeline; returns images as floats [n, height, width, 3]."""
        job, context, family = self.job, self._context, self._context.family
        arguments = call_arguments(pipe, family, job, context.text_tokens)
        self._known_prompt = remember_prompts(pipe, context.prompts, context.one_encodes)
        if context.rank == 0:
            self._warnings = family.prompt_warnings(pipe, job.prompt, context.text_tokens)
        returned = call(pipe, arguments | StepEnds(pipe, self._step_done).arguments)
        self.sound = family.sound(pipe, returned)
        return returned[0]

    def called(self, seconds: float) -> float:
        """Record a call of the transformer; return the seconds of it that this rank waited for others."""
        self.calls_s.append(seconds)
        before, self._waited_s = self._waited_s, sum(report.collective_wait_s for report in self.reports)
        return self._waited_s - before

    def computed_share(self) -> float:
        """Share of the blocks computed in its last call; 1 if the cache decides nothing."""
        report = self.report
        if self.job.cache.type == "none" or report is None or not report.steps:
            return 1.0
        images = report.steps[-1].images
        return sum(image.computed_blocks for image in images) / (report.num_blocks * len(images))

    def over(self, ended: Ended) -> None:
        """Its pipeline made its last denoiser call, and returned or is suspended where it decodes."""
        self._tail, self.held_bytes, self.done = ended.tail, ended.held_bytes, True
        self._images = None if ended.result is None else to_uint8(ended.result)

    @property
    def tiled(self) -> bool:
        """Whether all ranks share the decoding of each image by tiles; the same on all ranks."""
        size, frames = self.job.size, max(1, self.job.inputs.num_frames)
        return self._tail is not None and size.width * size.height * frames > self._context.tiled_over

    def decoded(self, rows: Sequence[int]) -> Any:
        """The VAE's output for these rows; if :attr:`tiled`, this rank's tiles of all rows.

        Ranks decode different rows, so it must not call any collective.
        """
        context, images = self._context, len(self.job.images)
        context.observer.entered(self.job, "decode")
        if self._tail is None:
            return None
        return self._tail.tiles(images, context.rank, context.world) if self.tiled else self._tail.decode(images, rows)

    def images(self, rows: Sequence[int], decoded: Any) -> dict[int, np.ndarray]:
        """The pipeline's output from :meth:`decoded`: uint8 [height, width, 3] by row; [frames, ...] for a video."""
        if self._tail is not None and rows:
            return dict(zip(rows, to_uint8(self._tail.finish(decoded)), strict=True))
        self.drop()
        return {} if self._images is None else {row: self._images[row] for row in rows}

    def drop(self) -> None:
        """End it: this rank needs nothing more of it."""
        if self._tail is not None:
            self._tail.drop()
            self._tail = None

    def output(self) -> JobOutput:
        """Rank 0's output of the job; images and the seconds of decoding come from all ranks."""
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
        """Progress since the last report."""
        events, self.progress = self.progress, []
        return events

    def _step_done(self, pipe: Any, step: int, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor | None:
        """Handle the end of a step (from 0). Returns latents to continue with; None: ``after``."""
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
        """None if it fails: the other ranks continue, and a preview that runs out of memory must not break the gang."""
        job, context = self.job, self._context
        try:
            with context.vae_lock:
                return context.family.preview(_with_real_vae(pipe, context.pipe), before, after, step, job.size)
        except Exception as error:
            _logger.warning(f"no preview: {type(error).__name__}: {error}", extra=about(job, rank=context.rank))
            return None


def _with_real_vae(own: Any, pipe: Any) -> Any:
    """The job's own view, with a VAE that decodes immediately."""
    seen = copy.copy(own)
    object.__setattr__(seen, "vae", pipe.vae)
    return seen
