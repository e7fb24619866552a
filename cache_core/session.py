"""One job's cache state: created for a request and discarded after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cache_core.blocks import Block, BlockCall
from cache_core.branches import Branch, Shapes
from cache_core.buffers import Buffers
from cache_core.calls import CallInputs, StepCalls
from cache_core.consensus import Consensus, Sums, Totals, checksum16
from cache_core.policy import Deciding, Judge, Policy, Verdict
from cache_core.report import CacheReport, ImageDecision

__all__ = ["JobAborted", "Session", "check_complete", "check_due", "shapes_of"]


class JobAborted(Exception):
    """A rank asked to end this job; raised on every rank of the group at the same step.

    Attributes:
        step: the step (within ``branch``) that was not finished.
        branch: name of the cache context of that step.
    """

    def __init__(self, step: int, branch: str) -> None:
        super().__init__(f"job aborted at step {step} of branch {branch!r}")
        self.step, self.branch = step, branch


class Session:
    """Cache state of one job on one transformer.

    Args:
        blocks: the transformer's blocks in execution order.
        policy: creates the method's policy.
        each: the options of every image, or one for all.
        consensus: how the ranks decide together.
        report: filled in step by step.
        should_abort: polled once per step; True asks all ranks to raise :class:`JobAborted`.
        name: the job's name, the same on all ranks.
        every_block: whether a step must call every block, once and in order, on one shape. False if nothing is
            remembered, so that skip-layer guidance and changing batches do not matter.
    """

    def __init__(
        self,
        blocks: list[Block],
        policy: Callable[[Any, Deciding], Policy],
        each: Sequence[Any],
        consensus: Consensus,
        report: CacheReport,
        should_abort: Callable[[], bool] | None = None,
        every_block: bool = True,
        name: str = "",
    ) -> None:
        self.blocks, self.report = blocks, report
        self._policy, self.each = policy, each
        self.consensus, self._should_abort = consensus, should_abort
        self.every_block = every_block
        self.buffers = Buffers() if every_block else None
        self._contexts: dict[str, StepCalls] = {}
        self._branches: dict[str, Branch] = {}
        self._calls: StepCalls | None = None  # those of the context in which a call is running
        self._branch: Branch | None = None
        # Ranks with different settings then fail at their first agreement, not at their first different decision.
        self._history = checksum16(name, report.method, report.options, report.num_blocks)

    def begin_step(self, context: str, inputs: CallInputs) -> None:
        """The transformer is being called in a cache context; the batch is known once its first block is called."""
        if self.buffers is not None:
            self.buffers.let_go()
        self._calls = self._contexts.setdefault(context, StepCalls())
        number = self._calls.begin(inputs)
        name = context if number == 1 else f"{context}#{number}"
        self._branch = self._branches.setdefault(name, Branch(name))
        self._branch.begin(inputs)

    def run(self, call: BlockCall) -> Any:
        """Route one block call through the branch's policy."""
        branch = self._current()
        if self.every_block:
            check_due(self.blocks, branch.next_block, call)
        if branch.next_block == 0:
            images, decisions = self.open_rows(shapes_of(call))
            branch.policy.begin_step(images, decisions)
        self.advance()
        if self.buffers is not None:
            call.watch(self.buffers)
        return branch.policy.run(call)

    def end_step(self) -> None:
        """The transformer's call returned: its step is complete and is added to the report."""
        branch = self._current()
        if self.every_block:
            check_complete(self.blocks, branch.next_block)
        if self.buffers is not None:
            self.buffers.let_go()
        if branch.next_block:
            branch.policy.end_step()
        self.record_step()

    def advance(self) -> None:
        """Count one more block of the running call."""
        self._current().next_block += 1

    def record_step(self) -> None:
        """The running call is over: count it."""
        record, non_finite = self._current().commit()
        self.report.steps.append(record)
        self.report.non_finite += non_finite
        if self._calls is not None:
            self._calls.end()
        self._branch = self._calls = None

    def fail_step(self) -> None:
        """The running call raised: restore the state before it, so that it may be repeated.

        Its decisions stay in the history that the ranks compare, and its collectives stay in the report: ranks that
        failed at different decisions notice at the next one.
        """
        if self.buffers is not None:
            self.buffers.fail()
        if self._calls is not None:
            self._calls.undo()
        branch, self._branch, self._calls = self._branch, None, None
        if branch is None:
            return
        if branch.step == 0:  # nothing came before it, so a different batch may be tried
            self._branches.pop(branch.name, None)
        else:
            branch.undo()
            branch.policy = self.new_policy(self)  # the old one holds states of the failed call

    def agree(
        self,
        site: int,
        sums: Sequence[Sums | None],
        device: torch.device,
        width: int = 2,
        judges: Sequence[Judge] = (),
    ) -> list[Verdict | None]:
        """The verdicts, the same on all ranks, of images compared at block ``site``; None for the other images.

        Also polls the abort flag. Called at the same places on every rank, because which images are compared depends
        only on options, step index, counters and earlier verdicts.

        Raises:
            JobAborted: a rank asked to end the job. RanksParted: the ranks are not at the same decision.
        """
        branch = self._current()
        wish = False
        if not branch.polled:
            branch.polled = True
            wish = self._should_abort is not None and bool(self._should_abort())
        before = self.consensus.collectives, self.consensus.wait_s
        totals, aborted = self.consensus.agree(sums, wish, checksum16(*self.place, site), device, width)
        self.count_waits(self.consensus.collectives - before[0], self.consensus.wait_s - before[1])
        if aborted:
            raise JobAborted(branch.step, branch.name)
        return self.settle(site, totals, judges)

    def answered(self, site: int) -> list[Verdict | None]:
        """The verdicts at block ``site`` that are kept from a failed attempt at this call."""
        return self._current().answered(site)

    def settle(self, site: int, totals: Sequence[Totals | None], judges: Sequence[Judge] = ()) -> list[Verdict | None]:
        """This job's verdicts at block ``site``, from the sums over all ranks."""
        return self._current().settle(site, totals, judges)

    @property
    def place(self) -> tuple[str, int, int]:
        """Where this job is: branch, step, and a checksum of its settings and all its decisions so far."""
        branch = self._current()
        return branch.name, branch.step, self._history

    def count_waits(self, collectives: int, seconds: float) -> None:
        """Add collectives and their waiting time to the report, including those shared with other jobs."""
        self.report.collectives += collectives
        self.report.collective_wait_s += seconds

    def look(self, device: torch.device) -> None:
        """Poll the abort flag in a step in which no image is compared."""
        branch = self._current()
        self.agree(-1, [None] * len(branch.decisions), device)

    def decided(self, *each: object) -> None:
        """Add decisions to the history that the next checksum covers."""
        self._history = checksum16(self._history, each)

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor held for later steps, over all branches."""
        for branch in self._branches.values():
            for image in branch.images:
                yield from image.tensors()

    def bytes_held(self) -> int:
        """Bytes kept alive for later steps; storage shared by several tensors counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(storages.values())

    def close(self) -> None:
        """Drop every tensor and counter, so that the next image starts fresh. The report stays."""
        if self.buffers is not None:
            self.buffers.let_go()
        self._branches.clear()
        self._contexts.clear()
        self._branch = self._calls = None

    def _current(self) -> Branch:
        if self._branch is None:
            raise RuntimeError("a transformer block was called outside a call of its transformer")
        return self._branch

    def open_rows(self, shape: Shapes) -> tuple[list[Any], list[ImageDecision]]:
        """At the first block of a call: the memories and decisions of this job's rows in it.

        Raises:
            ValueError: the batch or size differs from the branch's first step.
        """
        branch = self._current()
        branch.open(shape, self.each, lambda: self.new_policy(self), self.every_block)
        return branch.images, branch.decisions

    def new_policy(self, deciding: Deciding) -> Policy:
        """A policy that runs calls of this job's images, alone or with those of other jobs."""
        return self._policy(self.each[0], deciding)


def shapes_of(call: BlockCall) -> Shapes:
    """The shapes of the streams that a block was called with."""
    hidden, encoder = call.states
    return tuple(hidden.shape), None if encoder is None else tuple(encoder.shape)


def check_due(blocks: Sequence[Block], number: int, call: BlockCall) -> None:
    """Raise RuntimeError if a block is not the next one, or gets a key-value cache, which no step may skip."""
    if call.block.index != number:
        expected = blocks[min(number, len(blocks) - 1)].name
        raise RuntimeError(
            f"block {call.block.name} was called where {expected} was expected: the cache needs every block of a step, "
            "in order (skip-layer guidance and the like need `type: none`)"
        )
    if refused := call.refused:
        raise RuntimeError(
            f"block {call.block.name} is given a key-value cache, which fills while blocks run, so that none may be "
            f"skipped ({refused}, or use `type: none`)"
        )


def check_complete(blocks: Sequence[Block], called: int) -> None:
    """Raise RuntimeError if a call of the transformer left out its last blocks."""
    if called != len(blocks):
        raise RuntimeError(
            f"the transformer called {called} of its {len(blocks)} blocks: the cache needs all "
            "(skip-layer guidance and the like need `type: none`)"
        )
