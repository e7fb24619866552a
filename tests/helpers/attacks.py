"""Random schedules under which ranks would diverge if they did not decide together."""

from __future__ import annotations

import math
import random
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cache_core import RanksParted, cache_session
from cache_core.consensus import Consensus, GroupConsensus
from tests.helpers.tiny_flux import Job, draw, tiny_flux


@contextmanager
def noise(rank: int, seed: int, strength: float):
    """Scale this rank's part of every difference by a random factor, as if its tokens changed differently."""
    from cache_core.policies import block_memory as shared
    from cache_core.policies import compared_block as compared
    from cache_core.policies import dual_block, nodes

    draws = random.Random(f"{rank} {seed}")
    exact, products = dual_block.difference_sum, nodes.deviation_products

    def noisy(*args: Any, **kwargs: Any) -> torch.Tensor:
        return exact(*args, **kwargs) * math.exp(strength * draws.gauss(0.0, 1.0))

    def noisy_products(*args: Any) -> tuple[torch.Tensor, ...]:
        return tuple(own * math.exp(strength * draws.gauss(0.0, 1.0)) for own in products(*args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "deviation_products", noisy_products)
        for module in (dual_block, compared, shared):
            if hasattr(module, "difference_sum"):
                patch.setattr(module, "difference_sum", noisy)
        yield


def _schedule(seed: int) -> tuple[dict[str, Any], Job]:
    """Random options and a random job, the same on all ranks."""
    draws = random.Random(seed)
    method = draws.choice(["DBCache", "partial Bn", "FBCache", "DBPrune", "ForecastCache"])
    options: dict[str, Any] = {"type": "DBCache" if method == "partial Bn" else method}
    options["warmup_steps"] = draws.randint(0, 2)
    options["residual_diff_threshold"] = draws.choice([0.1, 0.13, 0.16] if method == "DBPrune" else [0.2, 0.26, 0.33])
    if method == "DBPrune":
        options |= {"Fn_compute_blocks": draws.randint(0, 1), "Bn_compute_blocks": draws.randint(0, 1)}
        options |= {"enable_dynamic_prune_threshold": draws.random() < 0.5, "max_pruned_steps": draws.choice([-1, 3])}
        options |= {"residual_cache_update_interval": draws.randint(1, 2)}
    else:
        options |= {"max_continuous_cached_steps": draws.choice([-1, 1, 2]), "max_cached_steps": draws.choice([-1, 3])}
    if method in ("DBCache", "partial Bn"):
        options |= {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1}
    if method == "partial Bn":
        options |= {"Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,), "non_compute_blocks_diff_threshold": 0.12}
    seeds = tuple(draws.sample(range(50), draws.randint(1, 2)))
    return options, Job(seeds=seeds, steps=draws.randint(4, 6), side=2, text=2)


def _attack(rank: int, group: dist.ProcessGroup, schedules: range) -> list[dict[str, Any]]:
    """Each schedule's full record. Every rank runs the whole small model, so that ranks can disagree without a deadlock
    and their decisions can be compared."""
    transformer, records = tiny_flux(1, 2, heads=1), []
    for seed in schedules:
        options, job = _schedule(seed)
        parted = None
        with noise(rank, seed, 0.4):
            try:
                with cache_session(transformer, options, group=group) as report:
                    draw(transformer, job)
            except RanksParted as error:
                parted = str(error)
        records.append(
            {"parted": parted, "steps": report.to_dict(detail=True)["steps"], "collectives": report.collectives}
        )
    return records


def attacks(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    together = _attack(rank, group, range(200))
    with pytest.MonkeyPatch.context() as patch:  # without the all-reduce: each rank uses its own sums
        patch.setattr(GroupConsensus, "agree", Consensus.agree)
        alone = _attack(rank, group, range(40))
    dist.barrier(group)
    with pytest.MonkeyPatch.context() as patch:  # sums are local, but abort flag and checksum are still reduced

        def only_the_tail(self: GroupConsensus, vector: torch.Tensor) -> None:
            tail = vector[-2:].clone()
            dist.all_reduce(tail, group=self.group)
            vector[-2:] = tail

        patch.setattr(GroupConsensus, "_all_reduce", only_the_tail)
        watched = _attack(rank, group, range(40))
    return {"together": together, "alone": alone, "watched": watched}
