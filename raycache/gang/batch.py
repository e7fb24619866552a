"""Jobs of several requests drawn as one batch. To the gang's thread a batch is a job handle like any other.

Each image of a batch has its own prompt, noise and guidance, and takes its own cache decisions by its own thresholds,
so a picture does not depend, but for rounding, on what it was drawn with. A job that is aborted or late leaves its
batch with its answer; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from cache_core import without_thresholds
from raycache.gang.queue import JobHandle, JobQueue
from raycache.protocol.job import Job, JobOutput, Progress

__all__ = ["JobBatch", "take_mates"]


def take_mates(queue: JobQueue, first: JobHandle, limit: int) -> list[JobHandle]:
    """``first`` and the waiting jobs that can be drawn with it, in order of arrival, up to ``limit`` pictures.

    No job overtakes one that could have been drawn before it would have been: mates come along, nobody waits longer.
    """
    handles, room = [first], limit - len(first.job.seeds)
    if _kind(first.job) is None:
        return handles
    for handle in queue.waiting():
        if len(handle.job.seeds) <= room and _kind(handle.job) == _kind(first.job) and queue.take(handle):
            handles.append(handle)
            room -= len(handle.job.seeds)
    return handles


def _kind(job: Job) -> tuple[Any, ...] | None:
    """What must be equal for two jobs to share a batch; None for a job that is drawn alone (it shows previews)."""
    if job.preview_steps:
        return None
    return job.width, job.height, job.num_inference_steps, without_thresholds(job.cache)


class JobBatch:
    """Several :class:`JobHandle` s behind the interface of one.

    Attributes:
        job: all pictures of all jobs, in order.
    """

    def __init__(self, handles: Sequence[JobHandle]) -> None:
        self._handles = list(handles)
        jobs = [handle.job for handle in handles]
        ends = list(accumulate(len(job.seeds) for job in jobs))
        self._rows = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        pictures = [job for job in jobs for _ in job.seeds]
        self.job = replace(
            jobs[0],
            id="+".join(job.id for job in jobs),
            seeds=tuple(seed for job in jobs for seed in job.seeds),
            prompts=tuple(job.prompt for job in pictures),
            guidance_scales=tuple(job.guidance_scale for job in pictures),
            caches=tuple(job.cache for job in pictures),
            traces=tuple(trace for job in jobs for trace in job.traces),
            request_id=" ".join(job.request_id for job in jobs if job.request_id),
        )

    @property
    def reason(self) -> str | None:
        """Why all of it was aborted, if it was."""
        return next((handle.reason for handle in self._handles if handle.reason), None)

    @property
    def handles(self) -> list[JobHandle]:
        """The jobs in it."""
        return list(self._handles)

    def abort(self, reason: str) -> None:
        """Thread-safe. All of it ends at the next step."""
        for handle in self._handles:
            handle.abort(reason)

    def start(self) -> bool:
        """The gang takes it up; False if every job is over already."""
        alive = [handle.start() for handle in self._handles]  # each of them, not up to the first
        return any(alive)

    def pause(self) -> None:
        """It waits for new ranks."""
        for handle in self._handles:
            handle.pause()

    def late(self, now: float) -> bool:
        """Whether no job can be in time at ``now``."""
        return all(handle.late(now) or handle.future.done() for handle in self._handles)

    def unwanted(self) -> bool:
        """Whether nobody wants it any more. A job that nobody wants is answered at once and not waited for."""
        return self.end_if_unwanted() is not None

    def end_if_unwanted(self) -> Exception | None:
        """Answer the jobs that nobody wants; why, if those were the last."""
        outcomes = [handle.end_if_unwanted() for handle in self._handles]
        left = [handle for handle in self._handles if not handle.future.done()]
        if left:
            return None
        error = next(filter(None, outcomes), None) or self._handles[0].future.exception()
        assert error is None or isinstance(error, Exception)  # `JobHandle.end` takes no other
        return error

    def tell(self, events: list[Progress]) -> None:
        """Each job hears of its own pictures."""
        for handle, rows in zip(self._handles, self._rows, strict=True):
            handle.tell([replace(e, cached=e.cached[rows], residual_diff=e.residual_diff[rows]) for e in events])

    def end(self, outcome: JobOutput | Exception) -> None:
        """The answer of every job: its own pictures and decisions, or the error that all share."""
        for handle, rows in zip(self._handles, self._rows, strict=True):
            if isinstance(outcome, JobOutput):
                handle.end(_part(outcome, rows, handle.job))
            else:
                handle.end(outcome)


def _part(output: JobOutput, rows: slice, job: Job) -> JobOutput:
    """``job``'s part, the images ``rows``. Seconds and collectives are the batch's: each job was there all the time."""
    report = output.report
    if report is not None:
        totals = report["totals"]
        own = {name: totals[name][rows] for name in ("cached_steps", "computed_block_fraction")}
        steps = [step | {"images": step["images"][rows]} for step in report["steps"]]
        report = report | {"options": job.cache.to_dict(), "steps": steps, "totals": totals | own}
    images, warnings = output.images[rows], output.warnings[rows]
    return replace(output, images=images, warnings=warnings, report=report, batch_size=len(output.images))
