"""Many jobs on one rank, step by step: each is a pipeline call of its own, suspended where it calls its transformer.

A job runs an unmodified diffusers pipeline in a greenlet. In the place of its transformer stands an object that passes
everything on but the call: that hands the arguments over and switches away. The job's whole state is its own stack.
Whoever drives the stepper says which of the waiting calls are run together; a job goes on with its rows of the answer
to its next call, or to its end. So jobs come and go at any step, whatever their task and number of steps.

A call that fails leaves its jobs suspended, arguments, caches and all: it may be run again in smaller parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from greenlet import getcurrent, greenlet

from cache_core import CacheOptions, CacheReport, job_call, job_session, joined
from cache_core.compiled import unwrap_compiled
from cache_core.signatures import parameters_of
from raycache.worker.stacking import join_key, stack_arguments, unstack

__all__ = ["Ended", "Stepper"]


@dataclass(frozen=True)
class Ended:
    """A job that is over.

    Attributes:
        result: what its pipeline call returned; None if it was told to end, or raised.
        error: what it raised.
        held_bytes: of its cache, on this rank, when it ended.
    """

    name: str
    result: Any
    error: Exception | None
    report: CacheReport
    held_bytes: int = 0


class Stepper:
    """The jobs of one rank on one pipeline's components.

    All ranks of a group are told the same, in the same order. Gradients are off in the thread that drives it: pipelines
    that take turns would restore each other's mode.

    Args:
        pipe: a diffusers pipeline with a ``transformer``; its components are shared, but for the scheduler.
        group: the ranks that decide together; None = this process alone.
    """

    def __init__(self, pipe: Any, group: dist.ProcessGroup | None = None) -> None:
        self._pipe, self._group = pipe, group
        self._jobs: dict[str, _Suspended] = {}

    def start(self, name: str, draw: Callable[[Any], Any], options: CacheOptions, pipe: Any = None) -> Ended | None:
        """Begin a job, up to its first call of the transformer.

        Args:
            draw: calls the pipeline that it is given and returns what is to be kept.
            pipe: another pipeline over the same transformer, for another task.

        Returns:
            The job, if it came to its end without any call.

        Raises:
            ValueError: a job of this name is under way.
        """
        if name in self._jobs:
            raise ValueError(f"job {name!r} is under way already: each needs a name of its own")
        torch.set_grad_enabled(False)
        job = _Suspended(name, self._pipe if pipe is None else pipe, draw)
        job.session = job.stack.enter_context(job_session(job.transformer, options, self._group, name=name))
        self._jobs[name] = job
        return self._resume(job)

    @property
    def waiting(self) -> dict[str, Any]:
        """By job, what must be equal for its waiting call to join others'; None where it cannot."""
        return {name: job.key for name, job in self._jobs.items()}

    def report(self, name: str) -> CacheReport:
        """What the cache decided so far for a job under way."""
        report: CacheReport = self._jobs[name].session.report
        return report

    def step(self, names: Sequence[str]) -> list[Ended]:
        """Run the waiting calls of these jobs as one, and let each go on to its next.

        Returns:
            The jobs that came to their end by it. One that raised in its own code is among them, with its error.

        Raises:
            KeyError: no job of a name. ValueError: calls that cannot be stacked.
            Exception: the call's own, out of memory for one: all these jobs still wait with the same call.
        """
        jobs = [self._jobs[name] for name in names]
        first = jobs[0]
        if len(jobs) > 1 and (first.key is None or any(job.key != first.key for job in jobs)):
            raise ValueError(f"the calls of {', '.join(names)} differ in more than rows and cannot be stacked")
        calls = [job_call(job.session, job.transformer, (), job.kwargs, job.context) for job in jobs]
        stacked = stack_arguments(first.transformer, [job.kwargs for job in jobs])
        with ExitStack() as stack:
            stack.enter_context(joined(first.transformer, calls))
            if hasattr(first.transformer, "cache_context"):  # other hooks than the cache's may ask for a name
                stack.enter_context(first.transformer.cache_context(first.context))
            output = first.transformer(**stacked)
            parts = [output] if len(jobs) == 1 else unstack(output, [call.rows for call in calls])
        return [ended for job, part in zip(jobs, parts, strict=True) if (ended := self._resume(job, part))]

    def end(self, name: str) -> Ended:
        """Tell a job to end where it stands: its pipeline unwinds, as from an exception."""
        job = self._jobs.pop(name)
        with job.stack:
            job.greenlet.throw()  # GreenletExit, which no `except Exception` of a pipeline keeps
        return Ended(name, None, None, job.session.report)

    def _resume(self, job: _Suspended, answer: Any = None) -> Ended | None:
        result, error = None, None
        try:
            result = job.greenlet.switch(answer)
        except Exception as raised:
            error = raised
        if not job.greenlet.dead:
            arguments = join_key(job.transformer, job.kwargs)
            job.key = None if arguments is None else (arguments, job.session.each[0].joins)
            return None
        del self._jobs[job.name]
        held_bytes = job.session.bytes_held()
        job.stack.close()
        return Ended(job.name, result, error, job.session.report, held_bytes)


@dataclass
class _Suspended:
    """A job between two calls of its transformer.

    Attributes:
        kwargs: of the call that waits; context: the cache context it is made in.
    """

    name: str
    pipe: Any
    draw: Callable[[Any], Any]
    session: Any = None
    context: str = "default"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    key: Any = None
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.transformer = self.pipe.transformer
        own = copy.copy(self.pipe)
        # Not through DiffusionPipeline.__setattr__, which would write the config that all copies share.
        object.__setattr__(own, "scheduler", copy.deepcopy(self.pipe.scheduler))
        object.__setattr__(own, "transformer", _InPlaceOf(self))
        hub = getcurrent()
        self.greenlet = greenlet(lambda _: self.draw(own), parent=hub)

    def wait(self, kwargs: Mapping[str, Any]) -> Any:
        """In the job: hand over a call and come back with its answer."""
        self.kwargs = kwargs
        parent = self.greenlet.parent
        assert parent is not None
        return parent.switch()


class _InPlaceOf:
    """A transformer for one job: all of the real one but its call and the name of the branch."""

    def __init__(self, job: _Suspended) -> None:
        self._job = job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job.transformer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = parameters_of(type(unwrap_compiled(self._job.transformer)).forward)
        return self._job.wait(dict(zip(names, args, strict=False)) | kwargs)  # Z-Image's pipeline calls by position

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        before, self._job.context = self._job.context, name
        try:
            yield
        finally:
            self._job.context = before
