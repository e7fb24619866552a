"""Section *links*: the cost of exchanging tokens between ranks, by size, and of agreeing on a decision."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.gpu.measuring import attempt, seconds_of
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from benchmarks.gpu.spawning import run_ranks

__all__ = ["measure"]

_SIZES = tuple(1 << power for power in range(12, 29, 2))  # bytes of a rank: 4 KiB to 256 MiB
#: Numbers in one decision: sums of one image, the abort flag, the checksum.
_DECISION = 4


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows for each number of ranks above one."""
    recorder.note("Bandwidth counts what a rank sends to others: size x (ranks - 1) / ranks, in 10^9 bytes a second.")
    for world in plan.worlds(len(facts.devices)):
        if world > 1:
            with attempt(recorder, f"{world} ranks", plan.device):
                run_ranks(_links, world, plan, recorder)


def _links(rank: int, world: int, plan: Plan, recorder: Recorder) -> None:
    shape = plan.shape
    own = (shape.tokens + shape.text) // world * shape.width * getattr(torch, shape.dtype).itemsize
    named = {"query, key and value of a block": 3 * own, "output of a block's attention": own}
    sizes = _SIZES[:3] if plan.small else _SIZES[::2] if plan.quick else _SIZES
    for name, size in [*named.items(), *(("", size) for size in sizes)]:
        size -= size % world
        sent = torch.ones(size, dtype=torch.uint8, device=plan.device)
        received = torch.empty_like(sent)
        seconds = _repeated(plan, functools.partial(dist.all_to_all_single, received, sent))
        bandwidth = size * (world - 1) / world / seconds / 1e9
        if rank == 0:
            row = {"all-to-all": name or "-", "KiB per rank": size / 1024, "µs": 1e6 * seconds, "GB/s": bandwidth}
            recorder.add("All-to-alls by size", ranks=world, **row)
    sums = torch.ones(_DECISION, device=plan.device)

    def decide() -> None:
        dist.all_reduce(sums)
        sums.fill_(1.0).tolist()  # the host waits for the numbers, as a decision does

    seconds = _repeated(plan, decide)
    if rank == 0:
        recorder.add("Agreement on a decision", ranks=world, **{"µs, host's wait included": 1e6 * seconds})


def _repeated(plan: Plan, call: Callable[[], object]) -> float:
    """Seconds of one call: the median over several runs of many consecutive calls."""
    times, rows = (5, 3) if plan.small else (20, 5)
    for _ in range(3):  # NCCL opens its connections at the first message of each kind
        call()
    seconds = []
    for _ in range(rows):
        dist.barrier()
        seconds.append(seconds_of(plan.device, lambda: [call() for _ in range(times)]) / times)
    return statistics.median(seconds)
