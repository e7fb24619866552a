"""Jobs in joined calls of a tiny FLUX, with whichever jobs are present at the time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cache_core import CacheReport, RanksParted, job_call, job_session, joined
from cache_core.consensus import Consensus, GroupConsensus
from tests.helpers.tiny_flux import Job, tiny_flux

STACKED = ("hidden_states", "timestep", "encoder_hidden_states", "pooled_projections")


@dataclass
class Drawing:
    """A job that runs in joined calls."""

    job: Job
    session: Any
    latents: torch.Tensor
    outputs: list[torch.Tensor] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        timestep = self.job.timestep(len(self.outputs))
        return {"hidden_states": self.latents, "timestep": timestep, "return_dict": False, **self.job.static()}

    def take(self, output: torch.Tensor) -> None:
        step = len(self.outputs)
        self.outputs.append(output)
        self.latents = self.latents - 0.1 * output + self.job.drift(step)

    @property
    def done(self) -> bool:
        return len(self.outputs) == self.job.steps


class OutOfMemory(TorchDispatchMode):
    """Out of memory at the ``at``-th operation from here and all later ones, so cleanup must not allocate."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self._left = at

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._left <= 0:
            raise torch.OutOfMemoryError("as the test wants it")
        self._left -= 1
        return func(*args, **(kwargs or {}))


def call_together(transformer: Any, jobs: Sequence[Drawing], memory: float = math.inf) -> None:
    """One step of each job, in one call; no job makes the step if the memory is not enough for that many operations."""
    each = [job.arguments() for job in jobs]
    stacked = each[0] | {name: torch.cat([own[name] for own in each]) for name in STACKED}
    calls = [job_call(job.session, transformer, (), own) for job, own in zip(jobs, each, strict=True)]
    bounded = nullcontext() if memory == math.inf else OutOfMemory(memory)
    with torch.no_grad(), bounded, joined(transformer, calls):
        output = transformer(**stacked)[0].clone()  # the last operation, after the transformer has returned
    for job, rows in zip(jobs, output.split([len(job.job.seeds) for job in jobs]), strict=True):
        job.take(rows)


@dataclass(frozen=True)
class Fault:
    """A call fails, once for each entry of ``memory`` (in operations), and is then repeated in parts.

    Attributes:
        cut: number of jobs in the first part.
    """

    memory: tuple[int, ...] = ()
    cut: int = 0


def call_despite(transformer: Any, jobs: Sequence[Drawing], fault: Fault) -> int:
    """Make one step of each job; returns how often a call failed before that."""
    for failed, memory in enumerate(fault.memory):
        try:
            call_together(transformer, jobs, memory)
        except torch.OutOfMemoryError:
            continue
        return failed
    for part in (jobs[: fault.cut], jobs[fault.cut :]):
        if part:
            call_together(transformer, part)
    return len(fault.memory)


def draw_joined(
    transformer: Any,
    specs: Sequence[tuple[Job, Any]],
    arrivals: Sequence[int],
    group: Any = None,
    faults: Mapping[int, Fault] = MappingProxyType({}),
) -> list[tuple[list[torch.Tensor], CacheReport]]:
    """Run all jobs, each from its arrival, in calls with all jobs present; ``faults`` by the number of the call."""
    with ExitStack() as stack:
        drawings = [
            Drawing(job, stack.enter_context(job_session(transformer, options, group, name=str(k))), job.start())
            for k, (job, options) in enumerate(specs)
        ]
        now = 0
        while any(not drawing.done for drawing in drawings):
            if active := [d for d, at in zip(drawings, arrivals, strict=True) if at <= now and not d.done]:
                call_despite(transformer, active, faults.get(now, Fault()))
            now += 1
        return [(drawing.outputs, drawing.session.report) for drawing in drawings]


#: Jobs with different steps, thresholds, forecasts and batches that may share calls, and when each arrives.
TOGETHER: dict[str, list[tuple[Job, dict[str, Any]]]] = {
    method: [
        (Job(seeds=(1,), steps=7), common | {"residual_diff_threshold": low, "warmup_steps": 2}),
        (Job(seeds=(2, 3), steps=5), common | {"residual_diff_threshold": high, "warmup_steps": 1}),
        (Job(seeds=(4,), steps=6), common | {"residual_diff_threshold": high, "warmup_steps": 2} | forecast),
    ]
    for method, common, low, high, forecast in (
        ("DBCache", {"type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 2}, 0.2, 0.3, {"taylor_order": 1}),
        ("FBCache", {"type": "FBCache"}, 0.2, 0.3, {"taylor_order": 1}),
        (
            "DBPrune",
            {"type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1},
            0.1,
            0.14,
            {"taylor_order": 1},
        ),
        ("ForecastCache", {"type": "ForecastCache", "Bn_compute_blocks": 2}, 0.17, 0.24, {"forecast_nodes": 2}),
    )
}
ARRIVALS = (0, 2, 3)


def on_split_ranks() -> dict[str, Any]:
    """On each rank of a split model: joined jobs, the same with perturbed sums with and without the all-reduce, and
    ranks that join different jobs."""
    from raycache.worker.context_parallel import parallelize
    from tests.helpers.attacks import noise

    transformer = tiny_flux()
    group = parallelize(transformer)
    rank = dist.get_rank(group)
    record: dict[str, Any] = {m: draw_joined(transformer, specs, ARRIVALS, group) for m, specs in TOGETHER.items()}
    alone = tiny_flux(seed=0)  # whole on every rank, so that ranks that diverge do not hang
    for name, exact in (("attacked", GroupConsensus.agree), ("not reduced", Consensus.agree)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GroupConsensus, "agree", exact)
            for method, specs in TOGETHER.items():
                with noise(rank, 7, 0.6):
                    drawn = draw_joined(alone, specs, ARRIVALS, group)
                record[name, method] = [report.to_dict(detail=True)["steps"] for _, report in drawn]
    dist.barrier(group)
    specs = TOGETHER["DBCache"][:1] * 2
    try:
        draw_joined(alone, specs, (0, 1) if rank == 0 else (1, 0), group)
        record["parted"] = None
    except RanksParted as error:
        record["parted"] = str(error)
    return record
