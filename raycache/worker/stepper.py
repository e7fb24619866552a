"""Many jobs on one rank, step by step: each is its own pipeline call, suspended where it calls a denoiser.

A job runs an unmodified diffusers pipeline in a greenlet, with a view of its own (:mod:`raycache.worker.job_view`).
The job's whole state is its own stack. The stepper's driver decides which of the waiting calls run together; a job
continues with its rows of the result to its next call, to where it decodes, or to its end. So jobs come and go at any
step, whatever their task and number of steps.

A call that fails leaves its jobs suspended with arguments and caches intact: it may run again in smaller parts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from greenlet import getcurrent, greenlet

from cache_core import CacheOptions, CacheReport, job_call, job_session, joined
from raycache.models.denoisers import blocks_of, denoisers_of
from raycache.protocol.lora import LoraChoice
from raycache.worker.adapters import Adapters
from raycache.worker.job_view import Handed, JobView, arguments_by_row, decode_rows
from raycache.worker.stacking import join_key, stack_arguments, unstack
from raycache.worker.tiles import TiledRows

__all__ = ["Ended", "Stepper", "Tail"]


@dataclass(frozen=True)
class Ended:
    """A job that has ended, except perhaps for decoding.

    Attributes:
        result: what its pipeline call returned; None if ended early, raised, or suspended before its ``tail``.
        error: what it raised.
        reports: the cache's decisions, one report for each denoiser that it knows.
        held_bytes: size of its cache on this rank when it ended.
        tail: the rest of the pipeline, from decoding on.
    """

    name: str
    result: Any
    error: Exception | None
    reports: tuple[CacheReport, ...]
    held_bytes: int = 0
    tail: Tail | None = None

    @property
    def report(self) -> CacheReport:
        """The report of the only denoiser, or of the first."""
        return self.reports[0]


class Tail:
    """The end of a job's pipeline, from the call of ``vae.decode`` on."""

    def __init__(self, job: _Suspended, handed: Handed, vae: Any) -> None:
        self._job, self._handed, self._vae = job, handed, vae

    def decode(self, images: int, rows: Sequence[int]) -> Any:
        """The result of ``vae.decode`` for these of the job's images; in any thread."""
        with self._job.view.vae_lock:
            return decode_rows(self._vae, self._handed, images, rows)

    def tiles(self, images: int, rank: int, world: int) -> TiledRows:
        """This rank's tiles of all of the job's images, computed; in any thread."""
        with self._job.view.vae_lock:
            return TiledRows(self._vae, arguments_by_row(self._handed, images), rank, world)

    def finish(self, decoded: Any) -> Any:
        """Let the pipeline finish with it; returns the pipeline's result. In the stepper's thread, once."""
        return self._job.greenlet.switch(decoded)

    def drop(self) -> None:
        """End the pipeline here: it unwinds, as from an exception. In the stepper's thread."""
        self._job.greenlet.throw()


class Stepper:
    """The jobs of one rank on one pipeline's components.

    All ranks of a group make the same calls, in the same order. Gradients are off in the thread that drives it:
    pipelines that take turns would restore each other's mode.

    Args:
        pipe: a diffusers pipeline; its components are shared, except the scheduler.
        group: the ranks that decide together; None = this process alone.
        vae_lock: held while the VAE is used.
        adapters: the LoRAs that jobs may use.
    """

    def __init__(
        self,
        pipe: Any,
        group: dist.ProcessGroup | None = None,
        vae_lock: threading.Lock | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._pipe, self._group, self._adapters = pipe, group, adapters
        self._vae_lock = vae_lock or threading.Lock()
        self._jobs: dict[str, _Suspended] = {}
        self._known: dict[type, bool] = {}

    def start(
        self,
        name: str,
        draw: Callable[[Any], Any],
        options: CacheOptions,
        pipe: Any = None,
        lora: LoraChoice | None = None,
    ) -> Ended | None:
        """Start a job and run it up to its first call of a denoiser.

        Args:
            draw: calls the pipeline passed to it and returns the result to keep.
            options: the cache's; they have no effect on a denoiser whose blocks the cache does not know.
            pipe: another pipeline over the same components, for another task.
            lora: a loaded LoRA for all of its calls.

        Returns:
            The job, if it reached its end or its tail without any call.

        Raises:
            ValueError: a job of this name is active.
        """
        if name in self._jobs:
            raise ValueError(f"job {name!r} is already active: names must be unique")
        torch.set_grad_enabled(False)
        job = _Suspended(name, self._pipe if pipe is None else pipe, draw, self._vae_lock)
        with job.stack as opened:
            if self._adapters is not None:
                opened.enter_context(self._adapters.held(lora))
                job.lora = lora
            for of, module in job.denoisers.items():
                if self._cacheable(module):
                    job.sessions[of] = opened.enter_context(job_session(module, options, self._group, name=name))
            job.stack = opened.pop_all()
        self._jobs[name] = job
        return self._resume(job)

    @property
    def waiting(self) -> dict[str, Any]:
        """By job, the key that must be equal for its waiting call to join others; None if it cannot join."""
        return {name: job.key for name, job in self._jobs.items()}

    def reports(self, name: str) -> tuple[CacheReport, ...]:
        """The cache's decisions so far for an active job, one report for each denoiser that it knows."""
        return self._jobs[name].reports

    def report(self, name: str) -> CacheReport:
        """The report of the only denoiser, or of the first."""
        return self.reports(name)[0]

    def step(self, names: Sequence[str]) -> list[Ended]:
        """Run the waiting calls of these jobs as one, and let each job continue to its next.

        Returns:
            The jobs that reached their end, or their tail. A job that raised in its own code is among them, with its
            error.

        Raises:
            KeyError: no job of a name. ValueError: calls that cannot be stacked.
            Exception: the call's own, such as out of memory: all these jobs still wait with the same call.
        """
        jobs = [self._jobs[name] for name in names]
        first = jobs[0]
        if len(jobs) > 1 and (first.key is None or any(job.key != first.key for job in jobs)):
            raise ValueError(f"the calls of {', '.join(names)} differ in more than their rows and cannot be stacked")
        transformer, of = first.denoisers[first.handed.of], first.handed.of
        if self._adapters is not None:
            self._adapters.use(first.lora)
        if of not in first.sessions:
            parts = [transformer(**first.handed.kwargs)]
        else:
            handed = [(job.sessions[of], transformer, (), job.handed.kwargs, job.handed.context) for job in jobs]
            calls = [job_call(*each) for each in handed]
            stacked = stack_arguments(transformer, [job.handed.kwargs for job in jobs])
            with ExitStack() as stack:
                stack.enter_context(joined(transformer, calls))
                if hasattr(transformer, "cache_context"):  # hooks other than the cache's may need a name
                    stack.enter_context(transformer.cache_context(first.handed.context, **first.handed.told))
                output = transformer(**stacked)
                parts = [output] if len(jobs) == 1 else unstack(output, [call.rows for call in calls])
        return [ended for job, part in zip(jobs, parts, strict=True) if (ended := self._resume(job, part))]

    def end(self, name: str) -> Ended:
        """End a job where it is suspended: its pipeline unwinds, as from an exception."""
        job = self._jobs.pop(name)
        with job.stack:
            job.greenlet.throw()  # GreenletExit, which `except Exception` in a pipeline does not catch
        return Ended(name, None, None, job.reports)

    def _resume(self, job: _Suspended, answer: Any = None) -> Ended | None:
        result: Any = None
        error, tail = None, None
        try:
            result = job.greenlet.switch(answer)
        except Exception as raised:
            error = raised
        if not job.greenlet.dead:
            handed: Handed = result
            if handed.of != "vae":
                self._waits(job, handed)
                return None
            tail, result = Tail(job, handed, job.pipe.vae), None
        del self._jobs[job.name]
        held_bytes = sum(session.bytes_held() for session in job.sessions.values())
        job.stack.close()
        return Ended(job.name, result, error, job.reports, held_bytes, tail)

    def _waits(self, job: _Suspended, handed: Handed) -> None:
        job.handed, job.key, of = handed, None, handed.of
        if of in job.sessions and (key := join_key(job.denoisers[of], handed.kwargs)) is not None:
            job.key = of, key, job.sessions[of].each[0].joins, job.lora

    def _cacheable(self, module: Any) -> bool:
        """Whether the cache knows the module's blocks."""
        if type(module) not in self._known:
            self._known[type(module)] = bool(blocks_of(module))
        return self._known[type(module)]


@dataclass
class _Suspended:
    """A job between two calls of its denoisers.

    Attributes:
        handed: the waiting call; key: must be equal for it to join others; lora: the LoRA of the call.
    """

    name: str
    pipe: Any
    draw: Callable[[Any], Any]
    vae_lock: threading.Lock
    sessions: dict[str, Any] = field(default_factory=dict)
    handed: Handed = field(default_factory=lambda: Handed("", {}))
    key: Any = None
    lora: LoraChoice | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.denoisers = denoisers_of(self.pipe)
        self.view = JobView(self.pipe, self._wait, self.vae_lock)
        self.greenlet = greenlet(lambda _: self.draw(self.view.pipe), parent=getcurrent())

    @property
    def reports(self) -> tuple[CacheReport, ...]:
        return tuple(session.report for session in self.sessions.values())

    def _wait(self, handed: Handed) -> Any:
        """Runs in the job: hand over a call and return its result."""
        parent = self.greenlet.parent
        assert parent is not None
        return parent.switch(handed)
