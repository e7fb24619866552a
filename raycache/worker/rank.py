"""One rank: a process group, a pipeline on one device, a cache session per job, and (rank 0) the picture.

``heartbeat`` and ``abort`` are called by another thread than ``generate``, also while that waits in a collective.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import signal
import threading
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import ray
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from cache_core import CacheReport, JobAborted, RanksParted, cache_session
from raycache.logs import about, to_stderr
from raycache.models.loading import load_pipeline, model_facts
from raycache.models.registry import family_of
from raycache.models.source import prepare_model
from raycache.protocol.heartbeat import Failure, Heartbeat, Phase
from raycache.protocol.job import Job, JobOutput, ModelFacts, ModelKind, Progress, stalls
from raycache.settings import AppSettings
from raycache.tracing import RankSpans
from raycache.worker.process_group import join_group, open_store

__all__ = ["Rank"]

_logger = logging.getLogger("raycache.rank")

#: What torch.distributed says when a peer is gone or a collective timed out; the group is useless after it.
_GROUP_ERROR = re.compile(r"gloo|nccl|connection (closed|reset|refused)|process group|timed out waiting", re.IGNORECASE)


class Rank:
    """What runs in a rank's process; :mod:`raycache.worker.actor` has the actor around it."""

    def __init__(self, settings: AppSettings, rank: int, stacks: str) -> None:
        self._settings, self._rank = settings, rank
        self._world = settings.parallel.ranks_per_replica
        self._device = torch.device("cuda:0" if settings.parallel.device == "cuda" else "cpu")
        self._group: dist.ProcessGroup | None = None
        self._store: dist.TCPStore | None = None
        self._aborted: str | None = None
        self._job: str | None = None
        self._phase: Phase = "loading"
        self._step = 0
        self._events: list[Progress] = []
        self._told: list[Progress] = []  # of this job, in heartbeats: one that is late may never be read
        self._collective_wait_s = 0.0
        self._latents: torch.Tensor | None = None  # of the step before, for previews
        self._lock = threading.Lock()
        to_stderr(settings.logging)
        # The watchdog asks for the stacks of a hanging rank by signal: it works while Python itself is stuck.
        self._stacks = Path(stacks).open("w")  # noqa: SIM115 - open as long as the rank lives
        faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)

    def prepare(self) -> tuple[str, ModelKind]:
        """Rank 0 only: what to load; builds the noise model if that is asked for."""
        return prepare_model(self._settings.model)

    def open_store(self) -> int:
        """Rank 0 only: opens the gang's meeting point and tells its port."""
        self._store = open_store(self._world)
        return self._store.port

    def join(self, port: int) -> None:
        """Join the process group. A gang of one needs none."""
        self._claim_thread()
        if self._world > 1:
            join_group(
                device=self._device,
                port=port,
                store=self._store,
                rank=self._rank,
                world_size=self._world,
                # While ranks load and draw their first pictures, one may compile much longer than another.
                timeout_s=self._settings.parallel.startup_timeout_s,
            )

    def settle(self) -> None:
        """The gang is warm: from now on a collective may take ``collective_timeout_s`` at most."""
        if self._group is not None:
            _set_pg_timeout(timedelta(seconds=self._settings.parallel.collective_timeout_s), self._group)

    def load(self, source: str, kind: ModelKind) -> ModelFacts:
        """Load the pipeline and split its transformer over the ranks."""
        self._claim_thread()
        self._pipe = load_pipeline(self._settings.model, source, self._device)
        facts = model_facts(self._pipe, self._settings.model, kind)
        self._family = family_of(facts.pipeline, kind)
        if self._world > 1:
            from raycache.worker.context_parallel import parallelize

            self._group = parallelize(self._pipe.transformer)
        self._text_tokens = facts.text_tokens
        self._phase = "idle"
        return facts

    def generate(self, job: Job) -> tuple[JobOutput | None, list[Progress]] | Failure:
        """Draw. Rank 0 returns the pictures and all progress once more, previews left out; the others None."""
        self._claim_thread()
        self._job, self._step = job.id, 0
        with self._lock:
            self._events, self._told = [], []
        began, spans, failure = time.monotonic(), RankSpans(job, self._rank), None
        try:
            output = self._draw(job, spans)
            seconds, steps = time.monotonic() - began, job.num_inference_steps
            words = f"drew {job.width}x{job.height}, {steps} steps, in {seconds:.2f} s"
            _logger.log(logging.DEBUG if self._rank else logging.INFO, words, extra=about(job, rank=self._rank))
            events = self._drain()
            return output, [*self._told[: len(self._told) - len(events)], *events]
        except Exception as error:
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # after an out-of-memory, what is cached may be in pieces
            kind, failure = _kind_of(error), type(error).__name__
            words = f"ended in {self._phase}, step {self._step}: {type(error).__name__}: {error}"
            _logger.warning(words, extra=about(job, rank=self._rank))
            trace = "" if kind == "aborted" else traceback.format_exc()
            return Failure(kind, self._phase, self._step, type(error).__name__, str(error), trace)
        finally:
            spans.end(failure)
            self._job, self._phase, self._latents = None, "idle", None

    def heartbeat(self) -> Heartbeat:
        """Answers also while ``generate`` is inside a collective."""
        context = ray.get_runtime_context()
        return Heartbeat(
            pid=os.getpid(),
            node=context.get_node_id(),
            device=str(self._device),
            gpus=context.get_accelerator_ids().get("GPU", []),
            job=self._job,
            phase=self._phase,
            step=self._step,
            memory=psutil.Process().memory_info().rss,
            device_memory=torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0,
            collective_wait_s=round(self._collective_wait_s, 3),
            events=self._drain(),
        )

    def abort(self, job_id: str) -> None:
        """Wish this job to end; all ranks stop at the same step. Telling rank 0 is enough."""
        self._aborted = job_id

    def _draw(self, job: Job, spans: RankSpans) -> JobOutput | None:
        began = time.monotonic()
        self._phase = "encode"
        spans.phase("encode")
        pipe, family = self._pipe, self._family
        with torch.no_grad():
            prompts = list(dict.fromkeys(job.prompts)) or [job.prompt]
            rows = [prompts.index(prompt) for prompt in job.prompts] or [0] * len(job.seeds)
            told = family.encode(pipe, prompts, rows, self._device, self._text_tokens)
            ends = [encoded := self._now()]
            self._phase = "denoise"
            spans.phase("denoise")
            # Each picture has a generator of its own, on the CPU: its noise depends on its seed alone.
            generators = [torch.Generator().manual_seed(seed) for seed in job.seeds]
            noise = family.noise(pipe, told, generators, job.height, job.width)
            self._latents = noise

            def step_done(_: object, step: int, __: object, state: dict[str, Any]) -> dict[str, Any]:
                ends.append(time.monotonic())
                return self._step_done(job, report, step, state)

            with (
                family.guided(pipe, job.guidance_scales),
                cache_session(
                    pipe.transformer, job.caches or job.cache, self._group, should_abort=lambda: self._aborted == job.id
                ) as report,
            ):
                latents = pipe(
                    **told,
                    height=job.height,
                    width=job.width,
                    num_inference_steps=job.num_inference_steps,
                    guidance_scale=job.guidance_scale,
                    latents=noise,
                    output_type="latent",
                    callback_on_step_end=step_done,
                    callback_on_step_end_tensor_inputs=["latents"],
                ).images
            denoised = self._now()
            self._collective_wait_s += report.collective_wait_s
            if self._rank:
                return None
            self._phase = "decode"  # rank 0 alone, so nothing below may be a collective
            spans.phase("decode")
            if self._aborted == job.id:
                raise JobAborted(job.num_inference_steps, "decode")
            images = family.decode(pipe, latents, job.height, job.width)
        return JobOutput(
            images=images,
            warnings=[family.prompt_warnings(pipe, prompts[row], self._text_tokens) for row in rows],
            report=None if job.cache.type == "none" else report.to_dict(),
            encode_s=encoded - began,
            denoise_s=denoised - encoded,
            decode_s=self._now() - denoised,
            stalls_s=stalls(np.diff(ends).tolist()),
        )

    def _step_done(self, job: Job, report: CacheReport, step: int, state: dict[str, Any]) -> dict[str, Any]:
        if self._rank == 0:
            decisions = report.steps[-1].images if job.cache.type != "none" else []
            cached = [decision.cached or bool(decision.pruned_blocks) for decision in decisions]
            differences = [decision.residual_diff for decision in decisions]
            event = Progress(step + 1, job.num_inference_steps, cached, differences)
            if step in job.preview_steps:
                event.preview = self._preview(job, step, state["latents"])
            with self._lock:
                self._events.append(event)
            self._latents = state["latents"]
        self._step = step + 1
        return {}

    def _preview(self, job: Job, step: int, latents: torch.Tensor) -> np.ndarray | None:
        """None where it fails: the other ranks go on, and for want of memory for a preview the gang must not part."""
        assert self._latents is not None  # set before the first step
        try:
            return self._family.preview(self._pipe, self._latents, latents, step, job.height, job.width)
        except RuntimeError as error:  # out of memory is one
            _logger.warning(f"no preview: {type(error).__name__}: {error}", extra=about(job, rank=self._rank))
            return None

    def _drain(self) -> list[Progress]:
        with self._lock:
            events, self._events = self._events, []
            self._told += [replace(event, preview=None) for event in events]
        return events

    def _now(self) -> float:
        """The time at which all work handed to the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def _claim_thread(self) -> None:
        """Methods with concurrency groups run on another thread than ``__init__``; these settings are per thread."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        if self._settings.parallel.threads_per_rank:
            torch.set_num_threads(self._settings.parallel.threads_per_rank)


def _kind_of(error: Exception) -> Literal["aborted", "error", "group"]:
    if isinstance(error, JobAborted):
        return "aborted"
    if isinstance(error, RanksParted | dist.DistError):
        return "group"
    return "group" if isinstance(error, RuntimeError) and _GROUP_ERROR.search(str(error)) else "error"
