"""What a rank says of itself, and of a job that failed on it. Light to import: the engine reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raycache.protocol.job import Progress

__all__ = ["Failure", "Heartbeat", "Phase"]

Phase = Literal["loading", "idle", "encode", "denoise", "decode"]


@dataclass(frozen=True)
class Failure:
    """What ended a job on one rank.

    Attributes:
        kind: ``aborted``, ``error``, or ``group`` (the process group is broken).
        phase, step: where it happened.
        type: class name of the exception; message: its words; trace: where it was raised.
    """

    kind: Literal["aborted", "error", "group"]
    phase: Phase
    step: int
    type: str
    message: str
    trace: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    @property
    def place(self) -> tuple[str, str, int, str]:
        """Equal on all ranks if all met the same error at the same place, so that no collective is left half done."""
        return self.kind, self.phase, self.step, self.type


@dataclass
class Heartbeat:
    """How a rank is, as it says itself.

    Attributes:
        job, phase, step: where it is; ``step`` counts finished denoising steps.
        gpus: ids of the GPUs that Ray gave it.
        memory: resident bytes of the process; device_memory: peak bytes allocated on its GPU.
        collective_wait_s: seconds it has waited in the decisions' all-reduce, over its life.
        events: rank 0's progress since the last heartbeat.
    """

    pid: int
    node: str
    device: str
    gpus: list[str]
    job: str | None
    phase: Phase
    step: int
    memory: int
    device_memory: int
    collective_wait_s: float
    events: list[Progress] = field(default_factory=list)
