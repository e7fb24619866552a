"""Ranks that fail where a prompt says so, if :func:`enable_planned_faults` was called before Ray started.

Signals from outside cannot hit "in step 3" or "while decoding"; a rank itself can do so exactly.
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
    """A fault of one rank in a job.

    Attributes:
        kind: ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``sleep`` (in Python), ``raise`` (RuntimeError), ``oom``, ``nan``
            (the latents turn into NaN after a step).
        rank: the rank with the fault.
        at: on entering this phase; in ``denoise`` at the end of step ``step``, from 0. Rank 0 decodes the first image.
        seconds: how long to sleep, at most.
        until: a file; a sleeping rank wakes as soon as it exists.
        once: a file created by the fault; if it exists, the fault does not happen. None = in every run.
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
        """A prompt with this fault in it; prompts with several ranks' faults may be concatenated."""
        return f"{text}{_MARK}{self.model_dump_json()}"

    def happen(self) -> None:
        """Cause the fault in this process."""
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
    """Every rank of a Ray started by this process from now on causes the faults in prompts.

    Without a fault in the prompt they work normally. :func:`raycache.worker.observer.observer_of` says why a
    environment variable is used.
    """
    os.environ[VARIABLE] = f"{PlannedFaults.__module__}:{PlannedFaults.__name__}"


class PlannedFaults(Observer):
    """Causes the faults of :meth:`PlannedFault.prompt` in its rank."""

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
