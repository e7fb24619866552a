"""The tick that the gang's thread sends to every rank, and a rank's report on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from raycache.protocol.heartbeat import Failure
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.sound import Sound

__all__ = ["Called", "Tick", "TickReport"]


@dataclass(frozen=True)
class Tick:
    """The same for every rank, carried out in the order of the fields.

    Attributes:
        number: one more than that of the tick before.
        knows: the last tick of which every rank's report was known when this was made. A rank that met a failure
            after that carries out nothing: the others may stand where it does not, and no collective may tell.
        abort: jobs that are dropped where they stand.
        start: jobs that begin; each is encoded, up to its first call of the transformer.
        calls: for each call of the transformer the jobs whose rows are in it, in this order.
        end: jobs whose latents are decoded; then they are over. Their rows, counted on from job to job, go to the
            ranks in turn.
    """

    number: int
    knows: int = -1
    abort: tuple[str, ...] = ()
    start: tuple[Job, ...] = ()
    calls: tuple[tuple[str, ...], ...] = ()
    end: tuple[str, ...] = ()


@dataclass(frozen=True)
class Called:
    """One call of the transformer: its jobs, how long it took, and the share of blocks that each job computed."""

    jobs: tuple[str, ...]
    seconds: float
    shares: tuple[float, ...]


@dataclass
class TickReport:
    """What came of a tick on one rank.

    Attributes:
        skipped: nothing was carried out, see :attr:`Tick.knows`.
        started_s: seconds from a job's start to its first call, for each that began.
        calls: those that were made.
        decoding: jobs whose decoding began, and is collected at the end of the next tick that is not skipped.
        done: jobs whose last call has been made, so that they can be decoded.
        decoded: by job the images that this rank decoded, uint8 [height, width, 3] by row.
        sounds: by job that of its first image, from the rank that decoded it.
        decode_s: seconds of that, by job.
        progress, outputs: by job, on rank 0 only; outputs lack images until those of all ranks are put together.
        failures: what went wrong; all but those of decoding broke the tick off.
    """

    number: int
    skipped: bool = False
    started_s: dict[str, float] = field(default_factory=dict)
    calls: list[Called] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    decoding: list[str] = field(default_factory=list)
    progress: dict[str, list[Progress]] = field(default_factory=dict)
    outputs: dict[str, JobOutput] = field(default_factory=dict)
    decoded: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    sounds: dict[str, Sound] = field(default_factory=dict)
    decode_s: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
