"""What the service hands to a gang, and what it gets back."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["DeadlineExceeded", "GangBroken", "GangRestarting", "GangStartError", "GangStatus", "Job", "JobCancelled"]
__all__ += ["JobFailed", "JobOutput", "ModelFacts", "ModelKind", "ModelSource", "Progress", "Recovery", "Trace"]
__all__ += ["stalls"]


ModelKind = Literal["noise", "demo", "folder", "hub"]
#: A local folder in diffusers' layout, and what it is.
ModelSource = tuple[str, ModelKind]


def stalls(step_s: Sequence[float]) -> float:
    """Seconds by which some steps took far longer than the others: a first one allocates, another may compile."""
    if len(step_s) < 2:
        return 0.0
    usual = statistics.median(step_s[1:])
    return sum(max(0.0, seconds - 2 * usual) for seconds in step_s)


@dataclass(frozen=True)
class ModelFacts:
    """What validation must know of the loaded model.

    Attributes:
        kind: ``noise`` (random weights), ``demo`` (bundled), ``folder`` or ``hub``.
        num_blocks: transformer blocks over all stacks.
        num_heads: attention heads.
        text_tokens: tokens every prompt is padded to.
        pipeline: class name of the pipeline.
        token_side: pixels a side of what the transformer reads as one image token.
    """

    kind: ModelKind
    num_blocks: int
    num_heads: int
    text_tokens: int
    pipeline: str
    token_side: int


@dataclass(frozen=True)
class Trace:
    """Where a rank's spans belong: ``parent`` is W3C's ``traceparent``; ``exporter`` the import path of Serve's."""

    parent: str
    exporter: str


@dataclass(frozen=True)
class Job:
    """One validated request: everything a rank needs.

    Attributes:
        seeds: one per image; so many rows are its in a call of the transformer.
        cache: one of cache_core's options models.
        preview_steps: steps, from 0, after which rank 0 decodes a small preview.
        request_id: of the request, for logs; need not be unique.
        traces: of the request, where it is traced.
    """

    id: str
    prompt: str = field(repr=False)
    width: int
    height: int
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    cache: Any
    preview_steps: tuple[int, ...] = ()
    request_id: str = ""
    traces: tuple[Trace, ...] = ()


@dataclass
class JobOutput:
    """Images, uint8 of shape [n, height, width, 3], the cache report, and seconds per stage.

    ``warnings``: what was odd about the prompt. ``denoise_s``: of the transformer calls that it was in, whoever shared
    them. ``after_fault_s``: in the first image after a fault, seconds since that was noticed. ``stalls_s``: how much
    of ``denoise_s`` went to steps that took far longer than the others. ``shared``: of its calls, how many had rows of
    other jobs. ``known_prompt``: it was encoded for an earlier job. ``held_bytes``: of the cache on one rank, at
    the end.
    """

    images: np.ndarray
    report: dict[str, Any] | None
    encode_s: float
    denoise_s: float
    decode_s: float
    warnings: list[str] = field(default_factory=list)
    after_fault_s: float | None = None
    stalls_s: float = 0.0
    shared: int = 0
    known_prompt: bool = False
    held_bytes: int = 0


@dataclass
class Progress:
    """One denoising step is done: ``step`` of ``steps`` (from 1), per image whether it was cached and its difference.

    ``preview`` is uint8 [n, height, width, 3] of a smaller image, at the steps that asked for one.
    """

    step: int
    steps: int
    cached: list[bool]
    residual_diff: list[float | None]
    preview: np.ndarray | None = None


@dataclass
class Recovery:
    """One fault and what followed it; seconds from noticing it, but for ``noticed_at``.

    Attributes:
        kind: ``death``, ``hang`` or ``error``.
        noticed_at: ``time.time()`` when it was noticed.
        killed_s: until all old ranks were gone.
        ready_s: until the new ranks were ready; None while they are not.
        picture_s: until the next image was done; None before.
        stages: seconds of the rebuild by stage: processes, rendezvous, model, warm-up.
    """

    kind: str
    noticed_at: float
    killed_s: float | None = None
    ready_s: float | None = None
    picture_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)


@dataclass
class GangStatus:
    """The gang as it sees itself; made without calling a rank.

    Attributes:
        ready: ranks are loaded, no recovery is under way; ``ready_in_s``: seconds until then, as it took last time.
        restarts: incarnations after the first; ``causes`` has them by kind of fault.
        jobs: that ranks have, by id; all of them get on, step by step.
        retries: jobs that were run again after a fault; ``retry_causes`` has them by its kind.
        faults: what was wrong each time, newest last, at most ten.
        ranks: each rank's last heartbeat, and its age in seconds.
        last_recovery: times of the last fault's recovery, see :class:`Recovery`.
    """

    name: str
    ready: bool
    restarts: int
    queued: int
    jobs: list[str]
    retries: int = 0
    retry_causes: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    last_recovery: Recovery | None = None
    ready_in_s: float = 0.0


class JobCancelled(Exception):
    """The job was aborted on request; the message is the reason given."""


class DeadlineExceeded(Exception):
    """The job's deadline passed before it was done."""


class JobFailed(Exception):
    """Every rank raised the same error, or ranks broke twice under it while it was alone; the message says which."""


class GangRestarting(Exception):
    """A rank died or hung and the job could not be retried in time.

    Attributes:
        retry_after_s: seconds after which a new request should succeed.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class GangStartError(RuntimeError):
    """The gang could not be started; the message says why and what to change."""


class GangBroken(RuntimeError):
    """Restarts are exhausted: the replica must be replaced."""
