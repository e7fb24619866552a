"""The types of the step scheduler: a job and its progress, the contents of a tick, accounts, costs.

All types are immutable, and independent of Ray, torch and clocks: the same values give the same plan on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

__all__ = ["Accounts", "CallCosts", "JobState", "Plan", "Rules", "settled"]


@dataclass(frozen=True)
class JobState:
    """A job as the scheduler sees it.

    Attributes:
        caller: the account of the job; fair shares are between callers.
        weight: weight of its caller: a caller of weight 2 gets twice the time of one of weight 1.
        arrived, deadline: seconds, on the same clock as ``now``.
        shape: shape of its transformer call without the batch dimension; equal for calls that may join.
        joins: what else must be equal to join: the method and the blocks that run. None: never joins.
        lora: its LoRA and scale; must be equal to join, too.
        rows: rows of its call: one per image.
        tokens: tokens of one row, text included.
        calls: total number of transformer calls; with true CFG two per step.
        calls_done: None while it waits. A job with all calls done is still to be decoded.
        share: the share of blocks that it is expected to compute.
        previews: number of previews that are decoded in between.
        unwanted: its client cancelled it.
    """

    id: str
    arrived: float
    shape: Hashable
    calls: int
    tokens: float
    rows: int = 1
    joins: Hashable | None = None
    lora: Hashable | None = None
    caller: str = ""
    weight: float = 1.0
    deadline: float = math.inf
    share: float = 1.0
    calls_done: int | None = None
    previews: int = 0
    unwanted: bool = False

    @property
    def waiting(self) -> bool:
        """Whether it has not started yet."""
        return self.calls_done is None

    @property
    def calls_left(self) -> int:
        """Transformer calls still to be made; 0: only decoding is left."""
        return max(0, self.calls - (self.calls_done or 0))


class CallCosts(Protocol):
    """Learned costs, in seconds and bytes. Must not change while a plan is made."""

    def call_s(self, jobs: Sequence[JobState]) -> float:
        """One transformer call with the rows of all these jobs, which may join."""

    def start_s(self, job: JobState) -> float:
        """From its start to its first transformer call: encoding."""

    def end_s(self, job: JobState) -> float:
        """From its last transformer call to its answer: decoding."""

    def bytes_of(self, job: JobState) -> float:
        """Device memory that it holds while it is active."""

    def max_rows(self, job: JobState) -> float:
        """Maximum rows of a call of its shape, learned from out-of-memory errors."""


@dataclass(frozen=True)
class Rules:
    """The parameters of the scheduler.

    Attributes:
        scheduling: ``fifo`` runs one job at a time in order of arrival; ``fair`` works on many step by step.
        max_rows: maximum rows of a joined call.
        max_active: maximum number of started, unfinished jobs. The last place is kept for a job whose turn it is:
            jobs that only join a call leave it free.
        decoders: ranks over which the rows of finished jobs are distributed for decoding.
        memory_bytes: limit for all active jobs; a job that needs more by itself is tried alone.
        ageing: of one caller's jobs the one with the least remaining work goes first, but each second of waiting
            counts as ``ageing`` seconds of work less. So only jobs that arrive within ``work / ageing`` seconds after
            a job are ever preferred to it.
        patience_s: a job without a deadline goes before its caller's deadlines when it is older than this.
        lead: to meet a deadline, a caller may get ahead of its fair share by at most this part of the smallest job of
            the caller whose turn it is. ``math.inf``: deadlines always go first.
        tolerance: the share by which ``left_s`` may be too long before a job counts as unable to be in time.
        max_stretch: how many times longer a joined call may take than the longest of its jobs' own calls. The encoding
            of one job that starts with it does not count if the calls that it then shares save far more.
        min_gain: minimum saving of joining, as a share of the joining job's own call.
        tick_s: a tick has calls for about this many seconds, and at least one call.
    """

    scheduling: Literal["fifo", "fair"] = "fair"
    max_rows: int = 8
    max_active: int = 8
    decoders: int = 1
    memory_bytes: float = math.inf
    ageing: float = 0.2
    patience_s: float = 600.0
    lead: float = 0.5
    tolerance: float = 0.2
    max_stretch: float = 2.0
    min_gain: float = 0.05
    tick_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a rule is out of its range.
        """
        for name in ("max_rows", "max_active", "decoders"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        for name in ("ageing", "patience_s", "lead", "tick_s", "min_gain", "memory_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, and must not be negative")
        if not self.max_stretch >= 1:
            raise ValueError(f"max_stretch is {self.max_stretch}, and must be at least 1: a call alone takes that")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}, and must be at least 0 and less than 1")


@dataclass(frozen=True)
class Accounts:
    """Virtual time: seconds that each caller got, divided by the weight of its jobs. The caller with the least is next.

    An idle caller does not accumulate credit: it comes back at ``clock``, the least virtual time of the callers with
    jobs. A caller that got more than its share, and left, still has that on its account.
    """

    got: Mapping[str, float] = field(default_factory=dict)
    clock: float = 0.0

    def of(self, caller: str) -> float:
        """Virtual time of a caller."""
        return max(self.got.get(caller, 0.0), self.clock)

    def present(self, callers: set[str]) -> Accounts:
        """The accounts when exactly these callers have jobs."""
        # If no caller has jobs, all start over.
        clock = min(map(self.of, callers)) if callers else max([self.clock, *self.got.values()])
        got = {caller: self.of(caller) for caller in sorted(callers | self.got.keys())}
        # Idle callers behind the clock are where a new one would be, and need not be remembered.
        got = {caller: at for caller, at in got.items() if caller in callers or at > clock}
        return Accounts(got, clock)

    def charged(self, charges: Mapping[str, float]) -> Accounts:
        """The accounts after callers used this many seconds of virtual time each."""
        got = dict(self.got)
        for caller, seconds in charges.items():
            got[caller] = self.of(caller) + seconds
        return Accounts(got, self.clock)


@dataclass(frozen=True)
class Plan:
    """What every rank does in a tick, in this order: abort, start, calls, end.

    Attributes:
        abort: jobs that are late or cancelled.
        start: jobs to encode, which are also in one of the calls.
        calls: for each transformer call the jobs whose rows are in it, in this order.
        end: jobs to decode.
        seconds: expected duration.
        charges: each caller's part of it, in virtual time.
    """

    abort: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    calls: tuple[tuple[str, ...], ...] = ()
    end: tuple[str, ...] = ()
    seconds: float = 0.0
    charges: Mapping[str, float] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether a rank has anything to compute."""
        return bool(self.calls or self.end)


def settled(jobs: Sequence[JobState], plan: Plan) -> tuple[JobState, ...]:
    """The jobs after ``plan`` was executed, without finished ones.

    A call of a job that turned out to need no further call does not count: it was planned before that was known.
    """
    called = {each for call in plan.calls for each in call}
    over = {*plan.abort, *plan.end}
    left = (job for job in jobs if job.id not in over)
    return tuple(
        replace(job, calls_done=min(job.calls, (job.calls_done or 0) + 1)) if job.id in called else job for job in left
    )
