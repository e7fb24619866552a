"""The status of a rank, and of a failure on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycache.protocol.capabilities import Capabilities

__all__ = ["Failure", "Heartbeat", "Loaded", "Phase", "Settled"]

Phase = Literal["loading", "idle", "encode", "denoise", "compile", "decode"]


@dataclass(frozen=True)
class Failure:
    """A failure on one rank.

    Attributes:
        kind: ``error`` (of one job, which has ended), ``together`` (a call of several jobs, which all wait in the same
            state as before), or ``group`` (the process group is broken).
        jobs: the jobs affected.
        phase, step: where it happened; ``step`` is that of the first job.
        type: class name of the exception; message: its message; trace: its traceback.
    """

    kind: Literal["error", "together", "group"]
    jobs: tuple[str, ...]
    phase: Phase
    step: int
    type: str
    message: str
    trace: str

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"

    @property
    def place(self) -> tuple[str, tuple[str, ...], str, int, str]:
        """Equal on all ranks if all had the same error at the same place, so that no collective is incomplete."""
        return self.kind, self.jobs, self.phase, self.step, self.type


@dataclass
class Heartbeat:
    """The status that a rank reports.

    Attributes:
        jobs, phase, step: the jobs that it works on now, its phase, and the finished denoising steps of the
            first of them.
        calls: transformer calls since it started.
        gpus: ids of its GPUs, as Ray numbers them on the node.
        memory: resident bytes of the process; device_memory: peak bytes allocated on its GPU.
        collective_wait_s: seconds spent waiting in the decisions' all-reduce since it started.
        compile_failure: why it runs transformer blocks uncompiled that it should have compiled; empty if it does not.
    """

    pid: int
    node: str
    device: str
    gpus: list[str]
    jobs: tuple[str, ...]
    phase: Phase
    step: int
    calls: int
    memory: int
    device_memory: int
    collective_wait_s: float
    compile_failure: str = ""


@dataclass(frozen=True)
class Loaded:
    """A rank has loaded its model.

    Attributes:
        stages: seconds by stage: import, read, copy, split.
    """

    model: Capabilities
    stages: dict[str, float]


@dataclass(frozen=True)
class Settled:
    """A rank has finished its warm-up.

    Attributes:
        free_bytes: free bytes on its device; None without device memory.
        compile_s: seconds spent compiling since the process started.
    """

    free_bytes: int | None
    compile_s: float
