"""The jobs of one rank: started, stepped, dropped and decoded as ticks say, many at once.

Every rank carries out the same ticks, so all are in the same state. A failure ends its tick early, and nothing more is
done until the gang knows of it (:attr:`~raycache.protocol.tick.Tick.knows`): a rank that continued alone would call
collectives that do not match the others'.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist

from cache_core import RanksParted
from raycache.logs import about
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job
from raycache.protocol.job_errors import LoraNotLoaded
from raycache.protocol.tick import Called, Tick, TickReport
from raycache.worker.active_job import ActiveJob, RankContext
from raycache.worker.decoding import Decoder, Decoding
from raycache.worker.stepper import Ended, Stepper

__all__ = ["JobRunner"]

_logger = logging.getLogger("raycache.rank")

#: Errors of torch.distributed when a peer is gone or a collective timed out; the group is unusable afterwards.
_GROUP_ERROR = re.compile(r"gloo|nccl|connection (closed|reset|refused)|process group|timed out waiting", re.IGNORECASE)


class JobRunner:
    """Used by the thread of the rank's ticks: jobs are greenlets of that thread.

    Args:
        context: shared by all jobs.
        group: the ranks that decide together; None = this process alone.
        claim: prepares another thread for the device.
    """

    def __init__(
        self, context: RankContext, group: dist.ProcessGroup | None, claim: Callable[[], None] = lambda: None
    ) -> None:
        self._context, self._group = context, group
        self._decoder = Decoder(context, claim, group)
        self._stepper = Stepper(context.pipe, group, context.vae_lock, context.adapters)
        self._active: dict[str, ActiveJob] = {}
        self._failed_in = -1

    def tick(self, tick: Tick) -> TickReport:
        """Carry out a tick. Exceptions of jobs and of transformer calls do not leave it."""
        told = TickReport(tick.number)
        if tick.knows < self._failed_in:
            told.skipped = True
            return told
        before = self._decoder.take()
        try:
            for name in tick.abort:
                self._drop(name, "aborted")
            for job in tick.start:
                self._start(job, told)
            for names in tick.calls:
                for joined in self._joinable(names):
                    self._call(joined, told)
            self._end(tick.end, told)
        except _BrokenOff:
            self._failed_in = tick.number
            if self._context.overlaps:  # no rank may report late because it waits for its own images
                self._decoder.begun[:0], before = before, []
        try:
            self._collect(before, told)
            if self._context.overlaps:
                told.decoding = [decoding.name for decoding in self._decoder.begun]
            else:
                self._collect(self._decoder.take(), told)
        finally:
            self._context.place.idle()
        if self._context.rank == 0:
            told.progress |= {name: events for name, active in self._active.items() if (events := active.told())}
        return told

    def _start(self, job: Job, told: TickReport) -> None:
        active = self._active[job.id] = ActiveJob(job, self._context)
        began = time.monotonic()
        try:
            began += self._load_lora(active)  # not part of encoding: the next job finds it loaded
            self._context.enter("encode", [active])
            ended = self._stepper.start(job.id, active.draw, job.cache.for_steps(job.steps), active.pipe, job.lora)
        except Exception as error:  # for example, options that do not fit the model
            self._fail((job.id,), _kind_of(error), error, told)
        active.reports = self._stepper.reports(job.id) if ended is None else ended.reports
        active.encode_s = told.started_s[job.id] = self._context.now() - began
        if ended is not None:
            self._over([ended], told)

    def _load_lora(self, active: ActiveJob) -> float:
        """Load the job's LoRA unless it is loaded; returns the seconds that took."""
        lora, adapters, began = active.job.lora, self._context.adapters, time.monotonic()
        if lora is None or (adapters is not None and lora.name in adapters.bytes):
            return 0.0
        self._context.enter("loading", [active])
        if adapters is None:
            raise LoraNotLoaded(f"LoRA {lora.name!r} is unknown: this service has no LoRAs")
        adapters.load(lora.name, self._group)
        return time.monotonic() - began

    def _joinable(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Jobs of a planned call that still wait, in groups that can share a call; the same on all ranks."""
        parts: dict[Any, list[str]] = {}
        waiting = self._stepper.waiting
        for name in names:
            if name in waiting:
                key = waiting[name]
                parts.setdefault((name,) if key is None else key, []).append(name)
        return [tuple(part) for part in parts.values()]

    def _call(self, names: tuple[str, ...], told: TickReport) -> None:
        jobs, place = [self._active[name] for name in names], self._context.place
        self._context.enter("denoise", jobs)
        began = time.monotonic()
        try:
            ended = self._stepper.step(names)
        except Exception as error:
            kind = _kind_of(error)
            # A job that was alone has failed; of several, each may work alone.
            self._fail(names, "together" if kind == "error" and len(names) > 1 else kind, error, told)
        seconds = self._context.now() - began
        place.calls += 1
        # They shared one all-reduce; each of them counts it.
        place.collective_wait_s += max(active.called(seconds) for active in jobs)
        told.calls.append(Called(names, seconds, tuple(active.computed_share() for active in jobs)))
        self._over(ended, told)

    def _over(self, ended: Sequence[Ended], told: TickReport) -> None:
        """Handle jobs whose pipelines ended; an error of one must not hide that another is done."""
        for one in ended:
            if one.error is None:
                self._active[one.name].over(one)
                told.done.append(one.name)
        broken = False
        for one in ended:
            if one.error is not None:
                active = self._active[one.name]
                told.failures.append(self._failure(active, (one.name,), _kind_of(one.error), one.error))
                self._drop(one.name, type(one.error).__name__)
                broken = True
        if broken:
            raise _BrokenOff

    def _end(self, names: Sequence[str], told: TickReport) -> None:
        """Decode this rank's rows; a failure is that job's alone and does not end the tick."""
        context, first = self._context, 0
        for name in names:
            active = self._active.get(name)
            if active is None or not active.done:
                continue
            owners = [(first + row) % context.world for row in range(len(active.job.images))]
            first += len(owners)
            context.at("decode", [active])
            self._decoder.begin(active, owners)
            if context.rank == 0:
                told.progress[name] = active.told()
            del self._active[name]

    def _collect(self, decodings: Sequence[Decoding], told: TickReport) -> None:
        """Wait for decoding and report its results."""
        for decoding in decodings:
            name, active = decoding.name, decoding.active
            self._context.at("decode", [active])
            try:
                told.decoded[name], told.decode_s[name] = self._decoder.result(decoding)
            except Exception as error:
                told.failures.append(self._failure(active, (name,), _kind_of(error), error))
                active.spans.end(type(error).__name__)
                continue
            if active.sound is not None and 0 in told.decoded[name]:
                told.sounds[name] = active.sound
            if self._context.rank == 0:
                told.outputs[name] = active.output()
            active.spans.end(None)

    def _drop(self, name: str, failure: str | None) -> None:
        """Remove the job from this rank; ``failure``: why, unless it was completed."""
        if name in self._stepper.waiting:
            self._stepper.end(name)
        if (active := self._active.pop(name, None)) is not None:
            active.drop()
            active.spans.end(failure)

    def _fail(
        self, names: tuple[str, ...], kind: Literal["error", "together", "group"], error: Exception, told: TickReport
    ) -> None:
        """Record the failure, drop the job if the job caused it, and end the tick."""
        told.failures.append(self._failure(self._active[names[0]], names, kind, error))
        if kind == "error":
            for name in names:
                self._drop(name, type(error).__name__)
        raise _BrokenOff

    def _failure(
        self, first: ActiveJob, names: tuple[str, ...], kind: Literal["error", "together", "group"], error: Exception
    ) -> Failure:
        if self._context.device.type == "cuda":
            torch.cuda.empty_cache()  # after an out-of-memory error the allocator's cache may be fragmented
        phase = self._context.place.phase
        words = f"{', '.join(names)} failed in {phase}, step {first.step}: {type(error).__name__}: {error}"
        _logger.warning(words, extra=about(first.job, rank=self._context.rank))
        trace = "".join(traceback.format_exception(error))
        return Failure(kind, names, phase, first.step, type(error).__name__, str(error), trace)


class _BrokenOff(Exception):
    """The tick ends here; its report has the failure."""


def _kind_of(error: Exception) -> Literal["error", "group"]:
    if isinstance(error, RanksParted | dist.DistError):
        return "group"
    return "group" if isinstance(error, RuntimeError) and _GROUP_ERROR.search(str(error)) else "error"
