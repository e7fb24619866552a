"""Ranks as processes of a section, created as in the service: each sees one GPU, and joins a group over loopback.

Imports nothing large: the rank's function imports what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gpu.plan import Plan
from raycache.worker.process_group import join_group, open_store

__all__ = ["run_ranks"]

#: Timeout of a collective, seconds: one rank may compile while others wait.
_TIMEOUT_S = 300.0
#: What each rank runs: (rank, number of ranks, plan, further arguments).
Work = Callable[..., None]


def run_ranks(work: Work, world: int, plan: Plan, *arguments: Any) -> None:
    """Call ``work(rank, world, plan, *arguments)`` in ``world`` processes, in an NCCL or gloo group.

    Args:
        work: a function at the top level of a module.

    Raises:
        ProcessRaisedException, ProcessExitedException: a rank failed; the others are ended.
    """
    store = open_store(world)  # kept open until all are done
    ranks = []
    try:
        for rank in range(world):
            with _seeing(rank, plan):
                given = (rank, work, world, plan, store.port, arguments)
                ranks.append(mp.start_processes(_rank, given, nprocs=1, join=False, start_method="spawn"))
        waiting = list(ranks)
        while waiting:
            # Each in turn, briefly: the first that fails raises, while others may wait for it forever.
            waiting = [one for one in waiting if not one.join(timeout=0.1)]
    finally:
        for process in [process for one in ranks for process in one.processes]:
            process.kill()
            process.join()


@contextmanager
def _seeing(rank: int, plan: Plan) -> Iterator[None]:
    """Processes that are started now see one GPU, as Ray's do, as device 0.

    It must be in their environment from the start: libraries use CUDA during import, and CUDA reads it only once.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [name.strip() for name in (before or "").split(",") if name.strip()]
    if plan.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank] if visible else str(rank)
    try:
        yield
    finally:
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        elif plan.device == "cuda":
            del os.environ["CUDA_VISIBLE_DEVICES"]


def _rank(_: int, rank: int, work: Work, world: int, plan: Plan, port: int, arguments: tuple[Any, ...]) -> None:
    if plan.device == "cuda":
        torch.cuda.set_device(0)
    else:
        torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    device = torch.device("cuda:0" if plan.device == "cuda" else "cpu")
    join_group(device=device, port=port, store=None, rank=rank, world_size=world, timeout_s=_TIMEOUT_S)
    # No cleanup after an error: it would wait for ranks that wait for this one.
    work(rank, world, plan, *arguments)
    dist.barrier()
    dist.destroy_process_group()
