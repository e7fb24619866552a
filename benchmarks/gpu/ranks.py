"""Section *ranks*: the same images over 1 to 8 ranks, and how ranks are started.

A rank is made as the service makes one: a process that sees one GPU, a group that is joined through a store on the
loopback interface, blocks compiled before the transformer is split.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gpu.images import BUILDS, built
from benchmarks.gpu.measuring import attempt, peak_gib
from benchmarks.gpu.methods import METHODS, image_times, methods
from benchmarks.gpu.models import why_not_fp8
from benchmarks.gpu.plan import Facts, Plan
from benchmarks.gpu.recorder import Recorder
from raycache.worker.process_group import join_group, open_store

__all__ = ["measure", "run_ranks"]

TABLE = "Images over ranks"
#: Seconds that a collective may take: one rank may compile while others wait.
_TIMEOUT_S = 300.0
#: What each rank runs: (rank, number of ranks, device, further arguments).
Work = Callable[..., None]


def measure(plan: Plan, facts: Facts, recorder: Recorder) -> None:
    """Rows of every number of ranks; how they scale is what quick keeps of the builds and methods."""
    # One rank is what the section on images has rehearsed already.
    worlds = plan.worlds(len(facts.devices))[1 if plan.small else 0 :]
    builds = [build for build in BUILDS if not (plan.quick and build != "eager")]
    for build in builds:
        if build.startswith("FP8") and (why := why_not_fp8(plan, facts)):
            recorder.skip(build, why)
            continue
        for world in worlds:
            with attempt(recorder, f"{build}, {world} ranks", plan.device):
                run_ranks(_images, world, plan, build, recorder)


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


def _images(rank: int, world: int, plan: Plan, build: str, recorder: Recorder) -> None:
    from raycache.worker.context_parallel import parallelize

    model = built(build, plan)
    group = parallelize(model) if world > 1 else None
    for name, options in methods(plan.shape).items():
        if plan.quick and name not in METHODS[:2]:
            continue
        row, _, report = image_times(model, options, plan, group)
        wait = report.collective_wait_s if report is not None and world > 1 else None
        if rank == 0:
            columns = {column: row[column] for column in ("s an image", "least", "most", "blocks computed")}
            labels = {"ranks": world, "build": build, "method": name}
            recorder.add(TABLE, **labels, **columns, **{"waited for decisions, s": wait, "peak GiB": peak_gib(plan.device)})
