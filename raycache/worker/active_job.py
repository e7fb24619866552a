"""One job on one rank, from its prompt to its images: what its own pipeline call does, and what is noted meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cache_core import CacheReport
from raycache.logs import about
from raycache.models.family import ModelFamily
from raycache.protocol.heartbeat import Phase
from raycache.protocol.job import Job, JobOutput, Progress, stalls
from raycache.tracing import RankSpans
from raycache.worker.observer import Observer
from raycache.worker.prompt_cache import PromptCache

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

    def idle(self) -> None:
        """There is nothing to do."""
        self.jobs, self.phase, self.step = (), "idle", 0


@dataclass
class RankContext:
    """What all jobs of a rank share.

    Attributes:
        pipe: a loaded pipeline of ``family``.
        rank: of this process; 0 tells. world: number of ranks.
        overlaps: images are decoded beside the next calls of the transformer.
        text_tokens: of each prompt.
        prompts: those encoded lately.
        place: is kept up to date.
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
        latents: after the step before, and of the whole job when ``done``.
        encode_s: until its first call of the transformer; calls_s: of each call that it was in.
        report: what the cache decided; held_bytes: what it held at the end; progress: rank 0's, until it is told.
    """

    def __init__(self, job: Job, context: RankContext) -> None:
        self.job, self._context = job, context
        self.spans = RankSpans(job, context.rank)
        self.phase: Phase = "idle"
        self.step, self.done = 0, False
        self.latents: torch.Tensor | None = None
        self.encode_s, self.calls_s = 0.0, list[float]()
        self.report: CacheReport | None = None
        self.held_bytes = 0
        self.progress: list[Progress] = []
        self._warnings: list[str] = []
        self._waited_s, self._known_prompt = 0.0, False

    def draw(self, pipe: Any) -> torch.Tensor:
        """Encode the prompt and call ``pipe``, the job's own view of the pipeline; returns its latents."""
        job, context, family = self.job, self._context, self._context.family
        rows = [0] * len(job.images)
        told, self._known_prompt = context.prompts.encoded(
            (job.prompt, len(rows)),
            lambda: family.encode(pipe, [job.prompt], rows, context.device, context.text_tokens),
        )
        # Each image has a generator of its own, on the CPU: its noise depends on its seed alone.
        generators = [torch.Generator().manual_seed(image.seed) for image in job.images]
        self.latents = noise = family.noise(pipe, told, generators, job.size.height, job.size.width)
        if context.rank == 0:
            self._warnings = family.prompt_warnings(pipe, job.prompt, context.text_tokens)
        latents: torch.Tensor = pipe(
            **told,
            height=job.size.height,
            width=job.size.width,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.images[0].guidance_scale,
            latents=noise,
            output_type="latent",
            callback_on_step_end=self._step_done,
            callback_on_step_end_tensor_inputs=["latents"],
        ).images
        return latents

    def called(self, seconds: float) -> float:
        """It was in a call of the transformer; returns the seconds of it that this rank waited for others."""
        self.calls_s.append(seconds)
        before, self._waited_s = self._waited_s, 0.0 if self.report is None else self.report.collective_wait_s
        return self._waited_s - before

    def computed_share(self) -> float:
        """Of the blocks, in its last call; all where nothing is decided."""
        if self.job.cache.type == "none" or self.report is None or not self.report.steps:
            return 1.0
        images = self.report.steps[-1].images
        return sum(image.computed_blocks for image in images) / (self.report.num_blocks * len(images))

    def decoded(self, rows: Sequence[int]) -> dict[int, np.ndarray]:
        """Images of these rows, uint8 [height, width, 3]. Other ranks decode others, so nothing in it is a collective.

        One by one: so an image is the same whoever decodes it, and takes the memory of one.
        """
        context, latents, size = self._context, self.latents, self.job.size
        context.observer.entered(self.job, "decode")
        assert latents is not None  # it is done
        decode = context.family.decode
        return {row: decode(context.pipe, latents[row : row + 1], size.height, size.width)[0] for row in rows}

    def output(self) -> JobOutput:
        """What rank 0 says of the job; images and the seconds of decoding come from all ranks."""
        job, denoise_s = self.job, sum(self.calls_s)
        words = f"drew {job.size}, {job.num_inference_steps} steps, in {self.encode_s + denoise_s:.2f} s"
        _logger.info(words, extra=about(job, rank=self._context.rank))
        return JobOutput(
            images=np.empty((0, job.size.height, job.size.width, 3), np.uint8),
            warnings=self._warnings,
            report=None if job.cache.type == "none" or self.report is None else self.report.to_dict(),
            encode_s=self.encode_s,
            denoise_s=denoise_s,
            decode_s=0.0,
            stalls_s=stalls(self.calls_s),
            known_prompt=self._known_prompt,
            held_bytes=self.held_bytes,
        )

    def told(self) -> list[Progress]:
        """Progress since it was told last."""
        events, self.progress = self.progress, []
        return events

    def _step_done(self, _: object, step: int, __: object, state: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's callback at the end of a step."""
        latents: torch.Tensor = state["latents"]
        changed = self._context.observer.step_ends(self.job, step, latents)
        self.step = step + 1
        if self._context.rank == 0:
            self.progress.append(self._event(step, latents))
        self.latents = latents if changed is None else changed
        return {} if changed is None else {"latents": changed}

    def _event(self, step: int, latents: torch.Tensor) -> Progress:
        decided = self.job.cache.type != "none" and self.report is not None
        decisions = self.report.steps[-1].images if decided and self.report is not None else []
        cached = [decision.cached or bool(decision.pruned_blocks) for decision in decisions]
        differences = [decision.residual_diff for decision in decisions]
        event = Progress(step + 1, self.job.num_inference_steps, cached, differences)
        if step in self.job.preview_steps:
            event.preview = self._preview(step, latents)
        return event

    def _preview(self, step: int, latents: torch.Tensor) -> np.ndarray | None:
        """None where it fails: the other ranks go on, and a preview that finds no memory must not break the gang."""
        job, context, size = self.job, self._context, self.job.size
        assert self.latents is not None  # set before the first step
        try:
            return context.family.preview(context.pipe, self.latents, latents, step, size.height, size.width)
        except RuntimeError as error:  # out of memory is one
            _logger.warning(f"no preview: {type(error).__name__}: {error}", extra=about(job, rank=context.rank))
            return None
