"""Ranks as processes of a section, made as the service makes them: each sees one GPU, and joins a group over loopback.

Imports nothing large: what a rank runs brings its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gpu.plan import Plan
from raycache.worker.process_group import join_group, open_store

__all__ = ["run_ranks"]

#: Seconds that a collective may take: one rank may compile while others wait.
_TIMEOUT_S = 300.0
#: What each rank runs: (rank, number of ranks, plan, further arguments).
Work = Callable[..., None]


def run_ranks(work: Work, world: int, plan: Plan, *arguments: Any) -> None:
    """Call ``work(rank, world, plan, *arguments)`` in so many processes, in a group of NCCL or gloo.

    Args:
        work: a function at the top level of a module.

    Raises:
        ProcessRaisedException, ProcessExitedException: a rank failed; the others are ended.
    """
    store = open_store(world)  # is kept open until all are done
    visible = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number.strip()]
    given = (work, world, plan, store.port, visible, arguments)
    mp.spawn(_rank, given, nprocs=world, join=True)


def _rank(
    rank: int, work: Work, world: int, plan: Plan, port: int, visible: list[str], arguments: tuple[Any, ...]
) -> None:
    if plan.device == "cuda":
        # Before anything asks CUDA, which looks once. As Ray does it: each rank's GPU is its number 0.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank] if visible else str(rank)
        torch.cuda.set_device(0)
    else:
        torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    device = torch.device("cuda:0" if plan.device == "cuda" else "cpu")
    join_group(device=device, port=port, store=None, rank=rank, world_size=world, timeout_s=_TIMEOUT_S)
    try:
        work(rank, world, plan, *arguments)
        dist.barrier()
    finally:
        dist.destroy_process_group()
