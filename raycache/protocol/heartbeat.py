"""The status of a rank, and of a failure on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raycache.protocol.capabilities import Capabilities

__all__ = ["Failure", "Heartbeat", "Loaded", "Phase", "Settled"]

Phase = Literal["loading", "idle", "encode", "denoise", "compile", "decode"]


@dataclass(frozen=True)
class Failure:
    """What went wrong on one rank.

    Attributes:
        kind: ``error`` (of one job, which is over), ``together`` (a call of several jobs, which all stand where they
            stood), or ``group`` (the process group is broken).
        jobs: whose it is.
        phase, step: where it happened; ``step`` is that of the first job.
        type: class name of the exception; message: its words; trace: where it was raised.
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
        """Equal on all ranks if all met the same error at the same place, so that no collective is left half done."""
        return self.kind, self.jobs, self.phase, self.step, self.type


@dataclass
class Heartbeat:
    """How a rank is, as it says itself.

    Attributes:
        jobs, phase, step: where it is: the jobs that it works on right now, and the finished denoising steps of the
            first of them.
        calls: of the transformer, over its life.
        gpus: ids of its GPUs, as Ray numbers them on the node.
        memory: resident bytes of the process; device_memory: peak bytes allocated on its GPU.
        collective_wait_s: seconds it has waited in the decisions' all-reduce, over its life.
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
    """A rank has its model.

    Attributes:
        stages: seconds by stage: import, read, copy, split.
    """

    model: Capabilities
    stages: dict[str, float]


@dataclass(frozen=True)
class Settled:
    """A rank is warm.

    Attributes:
        free_bytes: on its device; None where that has no memory of its own.
        compile_s: seconds that compiling took, since the process began.
    """

    free_bytes: int | None
    compile_s: float
