"""Calls of the transformer that several jobs share, each at a step of its own.

The rows of a call are stacked job after job. Every job decides as it would alone: its images have their own step,
options, counters and memory, and only the ranks' agreement is shared by all rows. Jobs must have the same method and
run the same blocks (:attr:`MethodOptions.joins`); the caller ensures that the transformer's arguments can be stacked.

Examples:
    >>> with job_session(transformer, options, name="a") as a, job_session(transformer, others, name="b") as b:
    ...     calls = [job_call(a, transformer, (), a_inputs), job_call(b, transformer, (), b_inputs)]
    ...     with joined(transformer, calls):                                               # doctest: +SKIP
    ...         output = transformer(**stacked)[0]                                         # doctest: +SKIP
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from cache_core.blocks import BlockCall
from cache_core.calls import CallInputs, call_inputs
from cache_core.compiled import unwrap_compiled
from cache_core.consensus import Sums, checksum16
from cache_core.ownership import call_for
from cache_core.policy import Judge, Policy, Verdict
from cache_core.session import Session, check_complete, check_due, shapes_of

__all__ = ["JobCall", "JoinedCall", "job_call", "joined"]


class JobCall(NamedTuple):
    """One job's part of a joined call.

    Attributes:
        context: the cache context in which the job makes it (``cache_context``), which names its branch.
        inputs: what the job itself would have called the transformer with.
        rows: how many of the call's rows belong to the job.
    """

    session: Session
    context: str
    inputs: CallInputs
    rows: int


def job_call(
    session: Session, transformer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], context: str = "default"
) -> JobCall:
    """A job's part of a joined call, from the arguments of the call that it would make alone."""
    inputs = call_inputs(unwrap_compiled(transformer), args, dict(kwargs))
    return JobCall(session, context, inputs, len(inputs.latents))


@contextmanager
def joined(transformer: nn.Module, calls: Sequence[JobCall]) -> Iterator[None]:
    """The next call of ``transformer`` in this context is one of all these jobs.

    It counts when this context ends without an error. If anything raises before, nothing counts, and each job's call
    may be repeated, together with any others: it then decides and computes as it would have. A different call instead
    starts with empty memories.

    ``should_abort`` is not polled in it: the caller ends jobs between calls.

    Raises:
        ValueError: two jobs that cannot share a call, or one job twice.
    """
    inner = unwrap_compiled(transformer)
    call = JoinedCall(calls)
    try:
        with call_for(inner, call):
            yield
    except BaseException:
        call.fail_step()
        raise
    call.commit()


class JoinedCall:
    """Routes the blocks of one call to the images of several jobs, as a session does for one job."""

    def __init__(self, calls: Sequence[JobCall]) -> None:
        if not calls:
            raise ValueError("joined() got no calls: give at least one")
        _check_joinable([call.session for call in calls])
        self._calls = calls
        self._sessions = [call.session for call in calls]
        self._first = calls[0].session
        self.blocks = self._first.blocks
        self._bounds = list(itertools.pairwise(itertools.accumulate((call.rows for call in calls), initial=0)))
        self._buffers = self._first.buffers  # one call is too short to look a transformer's blocks up again
        self._policy: Policy = self._first.new_policy(self)
        self._called = 0
        self._returned = False

    def begin_step(self, context: str, inputs: CallInputs) -> None:
        """The transformer is being called with the rows of all jobs; each has its own context and inputs."""
        for call in self._calls:
            call.session.begin_step(call.context, call.inputs)

    def run(self, call: BlockCall) -> Any:
        """Route one block call through the policy that the jobs have in common."""
        if self._first.every_block:
            check_due(self.blocks, self._called, call)
        if not self._called:
            self._open(call)
        self._called += 1
        for session in self._sessions:
            session.advance()
        if self._buffers is not None:
            call.watch(self._buffers)
        return self._policy.run(call)

    def end_step(self) -> None:
        """The transformer's own forward returned; code around it (a gather of all ranks' parts) may still fail."""
        if self._first.every_block:
            check_complete(self.blocks, self._called)
        if self._buffers is not None:
            self._buffers.let_go()
        self._returned = True

    def commit(self) -> None:
        """Add every job's step to its counters and its report, if the call was made."""
        if not self._returned:
            return
        if self._called:
            self._policy.end_step()
        for session in self._sessions:
            session.record_step()

    def fail_step(self) -> None:
        """The call raised: it is not a step of any job."""
        self._returned = False
        for session in self._sessions:
            session.fail_step()

    def agree(
        self,
        site: int,
        sums: Sequence[Sums | None],
        device: torch.device,
        width: int = 2,
        judges: Sequence[Judge] = (),
    ) -> list[Verdict | None]:
        """One all-reduce for all jobs' images; the checksum covers who is in the call, and where each is.

        Raises:
            RanksParted: the ranks are not at the same decision.
        """
        consensus = self._first.consensus
        before = consensus.collectives, consensus.wait_s
        totals, _ = consensus.agree(sums, False, checksum16(*self._places(), site), device, width)
        for session in self._sessions:
            session.count_waits(consensus.collectives - before[0], consensus.wait_s - before[1])
        return [
            verdict
            for session, (first, end) in zip(self._sessions, self._bounds, strict=True)
            for verdict in session.settle(site, totals[first:end], judges[first:end])
        ]

    def answered(self, site: int) -> list[Verdict | None]:
        """Each job's verdicts from a failed attempt; it does not matter which jobs shared that call."""
        return [verdict for session in self._sessions for verdict in session.answered(site)]

    def look(self, device: torch.device) -> None:
        """The ranks' agreement in a call in which no image is compared."""
        self.agree(-1, [None] * self._bounds[-1][1], device)

    def decided(self, *each: object) -> None:
        """Add each job's decisions to its own history, as if it were alone."""
        for session, (first, end) in zip(self._sessions, self._bounds, strict=True):
            session.decided(*each[first:end])

    def _places(self) -> list[tuple[Any, ...]]:
        return [(*session.place, *bounds) for session, bounds in zip(self._sessions, self._bounds, strict=True)]

    def _open(self, call: BlockCall) -> None:
        hidden, encoder = shapes_of(call)
        rows = self._bounds[-1][1]
        if hidden[0] != rows:
            raise ValueError(
                f"a joined call of {rows} rows, but the transformer was called with a batch of {hidden[0]}"
            )
        images: list[Any] = []
        decisions: list[Any] = []
        for job in self._calls:
            shape = (job.rows, *hidden[1:]), None if encoder is None else (job.rows, *encoder[1:])
            own, answers = job.session.open_rows(shape)
            images += own
            decisions += answers
        self._policy.begin_step(images, decisions)


def _check_joinable(sessions: Sequence[Session]) -> None:
    first = sessions[0]
    if len({id(session) for session in sessions}) < len(sessions):
        raise ValueError("a job is twice in one joined call: its branches need separate calls, one after the other")
    for other in sessions[1:]:
        if other.blocks is not first.blocks:
            raise ValueError("sessions of different transformers cannot share a call")
        if other.each[0].joins != first.each[0].joins:
            raise ValueError(
                f"{first.report.options} and {other.report.options} cannot share a call: the method and which blocks "
                "run must be equal"
            )
