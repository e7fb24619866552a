"""What each rank runs in the tests of the core on real ranks: split model, aborts, disagreement, NaN, two groups."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cache_core import JobAborted, RanksParted, cache_session, find_group
from cache_core.hooks import attachment_of
from tests.helpers.attacks import attacks
from tests.helpers.joined import on_split_ranks
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, tiny_flux

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {"type": "none"},
    "DBCache": {
        "type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 2, "warmup_steps": 2,
        "residual_diff_threshold": 0.24,
    },
    "DBCache, partial Bn, forecast": {
        "type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 6, "warmup_steps": 2,
        "residual_diff_threshold": 0.24, "Bn_compute_blocks_ids": (0, 3), "non_compute_blocks_diff_threshold": 0.11,
        "taylor_order": 1,
    },
    "FBCache": {"type": "FBCache", "warmup_steps": 2, "residual_diff_threshold": 0.22},
    "ForecastCache": {
        "type": "ForecastCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "warmup_steps": 2,
        "residual_diff_threshold": 0.2,
    },
    "BudgetCache": {"type": "BudgetCache", "warmup_steps": 2, "speedup": 1.6, "num_steps": 7},
    "ScheduleCache": {"type": "ScheduleCache", "warmup_steps": 2, "fit_weights": True},
    "DBPrune": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2,
        "residual_diff_threshold": 0.11,
    },
    "DBPrune, dynamic": {
        "type": "DBPrune", "Fn_compute_blocks": 0, "Bn_compute_blocks": 1, "warmup_steps": 2,
        "residual_diff_threshold": 0.07, "enable_dynamic_prune_threshold": True, "non_prune_blocks_ids": (3,),
    },
}  # fmt: skip
JOBS = {"one image": Job(seeds=(1,), steps=7), "three images": Job(seeds=(1, 2, 3), steps=7)}
ABORTED: dict[str, dict[str, Any]] = {
    "none": {"type": "none"},
    "DBCache": {"type": "FBCache", "warmup_steps": 2, "residual_diff_threshold": 0.9},
    "DBPrune": {
        "type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2,
        "residual_diff_threshold": 0.9, "max_pruned_steps": 1,
    },
}  # fmt: skip
ABORTED_STEPS = 4


def _split(transformer: Any) -> dist.ProcessGroup:
    from raycache.worker.context_parallel import parallelize

    return parallelize(transformer)


def drawn_together() -> dict[str, Any]:
    """Every method on the split model: reports and outputs."""
    transformer = tiny_flux()
    group = _split(transformer)
    together = {"uncached": draw(transformer, JOBS["three images"])}
    for method, options in OPTIONS.items():
        for name, job in JOBS.items():
            together[method, name] = draw_cached(transformer, options, job, group=group)
    return together


def aborts() -> dict[str, Any]:
    """One rank after another requests an abort, at every step; then a job that completes. On a split model, where a
    rank left behind would wait for the others forever."""
    transformer = tiny_flux(1, 3)
    group = _split(transformer)
    rank, size, job = dist.get_rank(group), dist.get_world_size(group), Job(seeds=(1, 2), steps=ABORTED_STEPS)
    record: dict[str, Any] = {}
    for method in ABORTED:
        expected, expected_report = draw_cached(transformer, ABORTED[method], job, group=group)
        raised = []
        for last in range(job.steps):
            now = [-1]
            wishes = rank == last % size

            def tick(step: int, now=now) -> None:
                now[0] = step

            def wish(now=now, wishes=wishes, last=last) -> bool:
                return wishes and now[0] == last

            try:
                with cache_session(transformer, ABORTED[method], group=group, should_abort=wish) as report:
                    draw(transformer, job, on_step=tick)
                raised.append(None)
            except JobAborted as error:
                raised.append((error.step, error.branch, len(report.steps), report.collectives))
        again, report = draw_cached(transformer, ABORTED[method], job, group=group)
        record[method] = {
            "raised": raised,
            "cached": [d[0] or bool(d[2]) for d in decisions(expected_report)],
            "fresh": report.to_dict(True) == expected_report.to_dict(True)
            and all(torch.equal(a, b) for a, b in zip(again, expected, strict=True)),
        }
    return record


def parted(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """One rank has a different memory or different options."""
    transformer, job = tiny_flux(1, 3, heads=1), Job(steps=6, side=2, text=2)
    record = {}
    for method in ("none", "DBCache", "DBPrune"):
        options = OPTIONS[method] if method == "none" else {**OPTIONS[method], "Fn_compute_blocks": 1}
        options |= {} if method != "DBCache" else {"Bn_compute_blocks": 1}

        def forget(step: int) -> None:
            if step == 3 and dist.get_rank(group) == 2:
                attachment_of(transformer).session._history ^= 1

        try:
            with cache_session(transformer, options, group=group) as report:
                draw(transformer, job, on_step=forget)
            record[method] = None
        except RanksParted as error:
            record[method] = (len(report.steps), report.collectives, str(error))
        # No rank is left waiting in a collective: the group still works.
        _, report = draw_cached(transformer, options, job, group=group)
        record[method, "afterwards"] = len(report.steps)
    other = {**OPTIONS["DBCache"], "Fn_compute_blocks": 1, "warmup_steps": 4 if rank == 1 else 3}
    try:
        with cache_session(transformer, other, group=group) as report:
            draw(transformer, job)
        record["options"] = None
    except RanksParted:
        record["options"] = len(report.steps)
    return record


def not_finite(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """The last rank's own sum is NaN at one step; the others' are finite."""
    from cache_core.policies import compared_block as compared
    from cache_core.policies import dual_block

    transformer, job, now = tiny_flux(1, 3, heads=1), Job(steps=7, side=2, text=2), [0]
    exact, record = dual_block.difference_sum, {}

    def spoiled(*args: Any, **kwargs: Any) -> torch.Tensor:
        spoil = rank == dist.get_world_size(group) - 1 and now[0] == 3
        return exact(*args, **kwargs) * (float("nan") if spoil else 1.0)

    def tick(step: int) -> None:
        now[0] = step

    for method, threshold in (("DBCache", 0.9), ("DBPrune", 0.9)):
        options = {**OPTIONS[method], "Fn_compute_blocks": 1, "Bn_compute_blocks": 1}
        options["residual_diff_threshold"] = threshold
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dual_block, "difference_sum", spoiled)
            patch.setattr(compared, "difference_sum", spoiled)
            with cache_session(transformer, options, group=group) as report:
                draw(transformer, job, on_step=tick)
        record[method] = report.to_dict(detail=True)
    return record


def two_groups(rank: int) -> dict[str, Any]:
    """Ranks 0, 1 run one job while ranks 2, 3 run another with more steps; then one model is split 2 x 2."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    transformer, record = tiny_flux(), {}
    job = Job(seeds=(4,), steps=4) if rank < 2 else Job(seeds=(5,), steps=7)
    for method in ("DBCache", "DBPrune, dynamic"):
        record[method] = draw_cached(transformer, OPTIONS[method], job, group=groups[rank // 2])

    from para_attn.context_parallel import init_context_parallel_mesh
    from para_attn.context_parallel.diffusers_adapters import parallelize_transformer

    mesh = init_context_parallel_mesh("cpu", max_batch_dim_size=2)  # 2 groups for the batch, 2 ranks each for tokens
    parallelize_transformer(transformer, mesh=mesh)
    job = Job(seeds=(1, 2), steps=7)
    # ParaAttention splits the position ids over the whole world, whatever the mesh is: passed twice, each rank's
    # quarter is the half it needs.
    static = job.static()
    job.extra.update({name: torch.cat([static[name]] * 2) for name in ("img_ids", "txt_ids")})
    job.extra.update({"pooled_projections": static["pooled_projections"][rank // 2 : rank // 2 + 1]})
    for method in ("DBCache, partial Bn, forecast", "DBPrune"):
        record["split", method] = draw_cached(transformer, OPTIONS[method], job, group=find_group(transformer))
    return record


def with_bfloat16_as_default(group: dist.ProcessGroup) -> list[Any]:
    """Loaders temporarily set torch's default dtype; the checksum must not be rounded to it."""
    transformer, job = tiny_flux(1, 3, heads=1), Job(steps=4, side=2, text=2)
    inputs, static = job.start(), job.static()
    with cache_session(transformer, {"type": "FBCache", "warmup_steps": 1}, group=group) as report, torch.no_grad():
        for _ in range(job.steps):
            torch.set_default_dtype(torch.bfloat16)
            try:
                transformer(hidden_states=inputs, timestep=job.timestep(0), **static)
            finally:
                torch.set_default_dtype(torch.float32)
    return decisions(report)


def on_four(rank: int, world_size: int) -> dict[str, Any]:
    world = dist.group.WORLD
    cases: dict[str, Callable[[], Any]] = {
        "together": drawn_together,
        "aborts": aborts,
        "attacks": lambda: attacks(rank, world),
        "parted": lambda: parted(rank, world),
        "not finite": lambda: not_finite(rank, world),
        "bfloat16": lambda: with_bfloat16_as_default(world),
        "two groups": lambda: two_groups(rank),
    }
    result = {}
    for name, case in cases.items():
        started = time.monotonic()
        result[name] = case()
        if rank == 0:  # pytest shows it if a test fails
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return result


def on_two(rank: int, world_size: int) -> dict[str, Any]:
    return {"aborts": aborts(), "joined": on_split_ranks()}
