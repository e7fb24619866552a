"""Ranks that fail where a prompt tells them to, once :func:`enable_planned_faults` was called before Ray started.

Signals from outside cannot hit "in step 3" or "while decoding"; a rank can hit itself there exactly.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from raycache.protocol.heartbeat import Phase
from raycache.protocol.job import Job
from raycache.worker.observer import VARIABLE, Observer

__all__ = ["PlannedFault", "PlannedFaults", "enable_planned_faults"]

_MARK = " ##fault "


class PlannedFault(BaseModel):
    """What one rank does to itself in a job.

    Attributes:
        kind: ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``sleep`` (in Python), ``raise`` (RuntimeError), ``oom``, ``nan``
            (the latents turn into NaN after a step).
        rank: which one.
        at: on entering this phase; in ``denoise`` at the end of step ``step``, from 0. Rank 0 decodes the first image.
        seconds: how long to sleep, at most.
        until: a file; whoever sleeps wakes as soon as it is there.
        once: a file; it is made when the fault happens, and where it is nothing happens. None = in every run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kill", "stop", "sleep", "raise", "oom", "nan"]
    rank: int = 0
    at: Literal["encode", "denoise", "decode"] = "denoise"
    step: int = 0
    seconds: float = 3600.0
    until: str | None = None
    once: str | None = None

    def prompt(self, text: str = "a red circle") -> str:
        """A prompt with this fault in it; prompts of several ranks' faults may be put together."""
        return f"{text}{_MARK}{self.model_dump_json()}"

    def happen(self) -> None:
        """Do it, in this process."""
        if self.once is not None:
            try:
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        if self.kind == "sleep":
            end = time.monotonic() + self.seconds
            while time.monotonic() < end and not (self.until and os.path.exists(self.until)):
                time.sleep(min(0.02, self.seconds))
        elif self.kind == "raise":
            raise RuntimeError("on purpose")
        elif self.kind == "oom":
            raise torch.OutOfMemoryError("out of memory, on purpose")
        elif self.kind in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)


def enable_planned_faults() -> None:
    """Every rank of a Ray that this process starts from now on does what prompts say.

    They work like any other where a prompt says nothing. :func:`raycache.worker.observer.observer_of` says why a
    variable of the environment carries it.
    """
    os.environ[VARIABLE] = f"{PlannedFaults.__module__}:{PlannedFaults.__name__}"


class PlannedFaults(Observer):
    """Does to its rank what :meth:`PlannedFault.prompt` says."""

    def entered(self, job: Job, phase: Phase) -> None:
        if phase != "denoise" and (plan := self._plan(job)) is not None and plan.at == phase:
            plan.happen()

    def step_ends(self, job: Job, step: int, latents: torch.Tensor) -> torch.Tensor | None:
        plan = self._plan(job)
        if plan is None or (plan.at, plan.step) != ("denoise", step):
            return None
        plan.happen()
        return torch.full_like(latents, torch.nan) if plan.kind == "nan" else None

    def _plan(self, job: Job) -> PlannedFault | None:
        plans = map(PlannedFault.model_validate_json, job.prompt.split(_MARK)[1:])
        return next((plan for plan in plans if plan.rank == self.rank), None)
