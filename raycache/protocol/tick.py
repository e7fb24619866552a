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
    """The work of one tick, the same for every rank, carried out in the order of the fields.

    Attributes:
        number: one more than that of the tick before.
        knows: the last tick of which every rank's report was known when this one was made. A rank with a failure after
            that carries out nothing: the others may be in another state, and a collective need not notice.
        abort: jobs to drop, in any state.
        start: jobs to start; each runs up to its first call of the transformer.
        calls: for each call of the transformer the jobs whose rows are in it, in this order.
        end: jobs to decode, which ends them. Their rows, numbered across all jobs, are assigned to the
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
    """The result of a tick on one rank.

    Attributes:
        skipped: the tick was not carried out, see :attr:`Tick.knows`.
        started_s: seconds from a job's start to its first call, for each that started.
        calls: the calls made.
        decoding: jobs whose decoding has started; it is collected at the end of the next tick that is not skipped.
        done: jobs whose last call has been made, so that they can be decoded.
        decoded: by job, the images that this rank decoded, uint8 [height, width, 3] by row.
        sounds: by job, the sound of its first video, from the rank that decoded it.
        decode_s: seconds of decoding, by job.
        progress, outputs: by job, on rank 0 only; outputs have no images until those of all ranks are merged.
        failures: failures; all except those of decoding ended the tick early.
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
