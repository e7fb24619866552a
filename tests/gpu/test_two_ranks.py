"""Two ranks over NCCL (gloo in a rehearsal), each with a GPU of its own: the decisions and the image of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.methods import methods
from benchmarks.gpu.models import Steps, flux
from benchmarks.gpu.plan import SMALL, Plan
from benchmarks.gpu.spawning import run_ranks
from cache_core import cache_session

PLAN = Plan(small=True)


def _draw(rank: int, world: int, plan: Plan, folder: str) -> None:
    """Every method, with and without the other rank."""
    from raycache.worker.context_parallel import parallelize

    model = flux(SMALL, plan.device)
    answers: dict[Any, Any] = {}
    group = None
    for ranks in (1, world):
        if ranks > 1:
            group = parallelize(model)
        for name, options in methods(SMALL).items():
            if options is not None:
                with cache_session(model, options, group) as report:
                    output = Steps(SMALL, plan.device).run(model)
                answers[name, ranks] = output.cpu(), report.to_dict()
    torch.save(answers, Path(folder) / f"{rank}.pt")


def test_two_ranks_are_one(two_devices: str, tmp_path: Path):
    run_ranks(_draw, 2, Plan(device=two_devices, small=True), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name in {name for name, _ in first}:
        (alone, report), (output, together) = first[name, 1], first[name, 2]
        assert together["totals"]["collectives"] > 0
        assert together["totals"]["computed_block_fraction"] == report["totals"]["computed_block_fraction"]
        decided = [[image["pruned_blocks"], image["cached"]] for step in together["steps"] for image in step["images"]]
        assert decided == [
            [image["pruned_blocks"], image["cached"]] for step in report["steps"] for image in step["images"]
        ]
        assert (output - alone).norm() / alone.norm() < 1e-2, "matrices of other shapes, and TF32 where it is on"
        assert torch.equal(output, second[name, 2][0]), "every rank has the whole image"
