"""Real gloo ranks decide together: with the model split over them, under attack, when one of them goes wrong.

Starting four processes costs far more than what they do here, so each group of ranks runs all its cases in one go and
brings home the records; the tests look at those.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cache_core import JobAborted, RanksParted, cache_session, find_group
from cache_core.consensus import Consensus, GroupConsensus
from cache_core.hooks import attachment_of
from tests.distributed.ranks import run_ranks
from tests.unit.core.tiny_flux import Job, decisions, differences, draw, draw_cached, gap, tiny_flux

#: Half a minute on an idle machine; the rest is for one where everything else runs at the same time.
pytestmark = pytest.mark.timeout(400)

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


# --- what every rank does -----------------------------------------------------------------------------------------


def _split(transformer: Any) -> dist.ProcessGroup:
    from raycache.para_attention import parallelize

    return parallelize(transformer)


def _drawn_together() -> dict[str, Any]:
    """Every method on the split model: reports and outputs."""
    transformer = tiny_flux()
    group = _split(transformer)
    together = {"uncached": draw(transformer, JOBS["three images"])}
    for method, options in OPTIONS.items():
        for name, job in JOBS.items():
            together[method, name] = draw_cached(transformer, options, job, group=group)
    return together


def _aborts() -> dict[str, Any]:
    """One rank after another wishes to stop, at every step; then a job that runs through. On a split model, where a
    rank that stays behind would wait for the others for ever."""
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


@contextmanager
def _noise(rank: int, seed: int, strength: float):
    """This rank's own share of every difference is off by a random factor, as if its tokens moved unlike the rest."""
    from cache_core import compared, dual_block, shared

    draws = random.Random(f"{rank} {seed}")
    exact = dual_block.difference_sum

    def noisy(*args: Any, **kwargs: Any) -> torch.Tensor:
        return exact(*args, **kwargs) * math.exp(strength * draws.gauss(0.0, 1.0))

    with pytest.MonkeyPatch.context() as patch:
        for module in (dual_block, compared, shared):
            if hasattr(module, "difference_sum"):
                patch.setattr(module, "difference_sum", noisy)
        yield


def _schedule(seed: int) -> tuple[dict[str, Any], Job]:
    """Random options and a random job, the same on all ranks."""
    draws = random.Random(seed)
    method = draws.choice(["DBCache", "partial Bn", "FBCache", "DBPrune"])
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
    """Each schedule's full record. Every rank runs the whole small model, so that parted ranks part without a
    deadlock and what they did can be compared."""
    transformer, records = tiny_flux(1, 2, heads=1), []
    for seed in schedules:
        options, job = _schedule(seed)
        parted = None
        with _noise(rank, seed, 0.4):
            try:
                with cache_session(transformer, options, group=group) as report:
                    draw(transformer, job)
            except RanksParted as error:
                parted = str(error)
        records.append(
            {"parted": parted, "steps": report.to_dict(detail=True)["steps"], "collectives": report.collectives}
        )
    return records


def _attacks(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    together = _attack(rank, group, range(200))
    with pytest.MonkeyPatch.context() as patch:  # the all-reduce taken out: each rank believes its own sums
        patch.setattr(GroupConsensus, "agree", Consensus.agree)
        alone = _attack(rank, group, range(40))
    dist.barrier(group)
    with pytest.MonkeyPatch.context() as patch:  # sums local, but abort flag and checksum still travel

        def only_the_tail(self: GroupConsensus, vector: torch.Tensor) -> None:
            tail = vector[-2:].clone()
            dist.all_reduce(tail, group=self.group)
            vector[-2:] = tail

        patch.setattr(GroupConsensus, "_all_reduce", only_the_tail)
        watched = _attack(rank, group, range(40))
    return {"together": together, "alone": alone, "watched": watched}


def _parted(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """One rank remembers, or was told, something else."""
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
        # Nobody is left behind in a collective: the group still works.
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


def _not_finite(rank: int, group: dist.ProcessGroup) -> dict[str, Any]:
    """The last rank's own sum is NaN at one step; the others' are fine."""
    from cache_core import compared, dual_block

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


def _two_groups(rank: int) -> dict[str, Any]:
    """Ranks 0, 1 draw one job while ranks 2, 3 draw another with more steps; then one model split 2 x 2."""
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
    # ParaAttention splits the position ids over the whole world, whatever the mesh is: given twice, each rank's
    # quarter of them is its half.
    static = job.static()
    job.extra.update({name: torch.cat([static[name]] * 2) for name in ("img_ids", "txt_ids")})
    job.extra.update({"pooled_projections": static["pooled_projections"][rank // 2 : rank // 2 + 1]})
    for method in ("DBCache, partial Bn, forecast", "DBPrune"):
        record["split", method] = draw_cached(transformer, OPTIONS[method], job, group=find_group(transformer))
    return record


def _with_bfloat16_as_default(group: dist.ProcessGroup) -> list[Any]:
    """Loaders set torch's default dtype for a while; the checksum must not be rounded by it."""
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


def _on_four(rank: int, world_size: int) -> dict[str, Any]:
    world = dist.group.WORLD
    cases: dict[str, Callable[[], Any]] = {
        "together": _drawn_together,
        "aborts": _aborts,
        "attacks": lambda: _attacks(rank, world),
        "parted": lambda: _parted(rank, world),
        "not finite": lambda: _not_finite(rank, world),
        "bfloat16": lambda: _with_bfloat16_as_default(world),
        "two groups": lambda: _two_groups(rank),
    }
    result = {}
    for name, case in cases.items():
        started = time.monotonic()
        result[name] = case()
        if rank == 0:  # pytest shows it where a test fails
            print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
    return result


def _on_two(rank: int, world_size: int) -> dict[str, Any]:
    return {"aborts": _aborts()}


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return run_ranks(4, _on_four, timeout=360)


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_ranks(2, _on_two, timeout=120)


# --- what must be true of it --------------------------------------------------------------------------------------


def test_uncached_four_ranks_draw_what_one_draws(four):
    alone = draw(tiny_flux(), JOBS["three images"])
    for rank in four:
        assert gap(rank["together"]["uncached"], alone) <= 1e-5


@pytest.mark.parametrize("images", JOBS)
@pytest.mark.parametrize("method", OPTIONS)
def test_four_ranks_decide_and_draw_as_one(four, method, images):
    outputs, report = draw_cached(tiny_flux(), OPTIONS[method], JOBS[images])
    for rank in four:
        together, theirs = rank["together"][method, images]
        for image in range(len(JOBS[images].seeds)):
            assert decisions(theirs, image) == decisions(report, image)
            for mine, alone in zip(differences(theirs, image), differences(report, image), strict=True):
                assert mine == pytest.approx(alone, abs=1e-5)
        assert gap(together, outputs) <= 1e-5
        assert theirs.to_dict(detail=True) == four[0]["together"][method, images][1].to_dict(detail=True)
    kinds = {d[0] or bool(d[2]) for image in range(len(JOBS[images].seeds)) for d in decisions(report, image)}
    assert kinds == ({False} if method == "none" else {False, True})


def test_one_all_reduce_per_decision(four):
    """DBCache: one in every step, warm-up too. DBPrune: one per compared block, one look in a step without."""
    for images in JOBS:
        for method in ("none", "DBCache", "FBCache"):
            report = four[0]["together"][method, images][1]
            assert report.collectives == len(report.steps)
        for method in OPTIONS:
            report = four[0]["together"][method, images][1]
            looks = sum(
                max(1, len({site for image in step.images for site in image.differences})) for step in report.steps
            )
            partial = method.startswith("DBCache, partial")
            assert report.collectives == (looks if not partial else looks + _steps_that_only_bn_asked(report)), method


def _steps_that_only_bn_asked(report: Any) -> int:
    """Steps in which Bn blocks were compared but Fn, where the one look always is, was not."""
    return sum(
        bool(sites := {site for image in step.images for site in image.differences}) and 0 not in sites
        for step in report.steps
    )


def _assert_all_ranks_decided_alike(ranks: list[list[dict[str, Any]]]) -> None:
    for records in zip(*ranks, strict=True):
        assert all(record == records[0] for record in records)


def test_under_attack_all_ranks_decide_alike(four):
    """Every rank's own statistic is off by a random factor, so that on its own it would decide otherwise."""
    ranks = [rank["attacks"]["together"] for rank in four]
    assert len(ranks[0]) >= 200
    _assert_all_ranks_decided_alike(ranks)
    assert not any(record["parted"] for record in ranks[0])
    seen = [image for record in ranks[0] for step in record["steps"] for image in step["images"]]
    assert {image["reason"] for image in seen} == {"warmup", "first", "limit", "threshold", "below"}
    assert 0.1 < sum(image["reason"] == "below" for image in seen) / len(seen) < 0.9


def test_the_attack_parts_ranks_that_do_not_reduce(four):
    """The proof that the test above can fail: the same attack with the all-reduce taken out."""
    ranks = [rank["attacks"]["alone"] for rank in four]
    with pytest.raises(AssertionError):
        _assert_all_ranks_decided_alike(ranks)
    parted = 0
    for records in zip(*ranks, strict=True):
        flags = [[[(i["cached"], i["pruned_blocks"]) for i in s["images"]] for s in r["steps"]] for r in records]
        parted += any(flag != flags[0] for flag in flags)
    assert parted > len(ranks[0]) / 2


def test_the_checksum_sees_parted_ranks_at_once(four):
    """Sums local, checksum reduced: wherever decisions part, all ranks stop at the next reduction. They may be a step
    apart by then (one still has Bn blocks to ask for, the others do not), but never a second decision."""
    ranks = [rank["attacks"]["watched"] for rank in four]
    stopped = 0
    for records in zip(*ranks, strict=True):
        assert len({record["parted"] is None for record in records}) == 1
        assert len({record["collectives"] for record in records}) == 1
        flags = [[[(i["cached"], i["pruned_blocks"]) for i in s["images"]] for s in r["steps"]] for r in records]
        # What parts in the very last decision of a job has no later one to show at, and does no harm.
        common = min(map(len, flags)) - 1
        assert all(flag[:common] == flags[0][:common] for flag in flags)
        stopped += records[0]["parted"] is not None
    assert stopped > len(ranks[0]) / 2


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("method", ["none", "DBCache", "DBPrune"])
def test_an_abort_on_any_rank_at_any_step_ends_all_at_that_step(request, method, size):
    """Cached steps and computed ones; the job after it is bit-equal to one before."""
    ranks = request.getfixturevalue({2: "two", 4: "four"}[size])
    records = [rank["aborts"][method] for rank in ranks]
    for record in records:
        assert [(r[0], r[1], r[2]) for r in record["raised"]] == [
            (step, "default", step) for step in range(ABORTED_STEPS)
        ]
        assert record["raised"] == records[0]["raised"]
        assert record["fresh"]
        assert set(record["cached"]) == ({False} if method == "none" else {False, True})


@pytest.mark.parametrize("method", ["none", "DBCache", "DBPrune"])
def test_a_rank_with_another_history_is_found_at_the_next_decision(four, method):
    for rank in four:
        steps, collectives, words = rank["parted"][method]
        assert steps == 3  # the history was changed before step 3, and step 3's first decision saw it
        assert collectives == four[0]["parted"][method][1]
        assert "not at the same decision" in words
        assert rank["parted"][method, "afterwards"] == 6


def test_a_rank_with_other_options_is_found_at_the_first_look(four):
    assert [rank["parted"]["options"] for rank in four] == [0, 0, 0, 0]


@pytest.mark.parametrize("method", ["DBCache", "DBPrune"])
def test_one_nan_on_one_rank_makes_all_ranks_compute(four, method):
    reports = [rank["not finite"][method] for rank in four]
    assert all(report == reports[0] for report in reports)
    reasons = [step["images"][0]["reason"] for step in reports[0]["steps"]]
    assert reasons == ["warmup", "warmup", "below", "non_finite", "first", "below", "below"]
    assert reports[0]["totals"]["non_finite"] > 0


@pytest.mark.parametrize("method", ["DBCache", "DBPrune, dynamic"])
def test_two_groups_in_one_world_know_nothing_of_each_other(four, method):
    """Other seeds, another number of steps: with one reduction over the world they would mix, or wait for ever."""
    for rank, result in enumerate(four):
        job = Job(seeds=(4,), steps=4) if rank < 2 else Job(seeds=(5,), steps=7)
        outputs, report = draw_cached(tiny_flux(), OPTIONS[method], job)
        together, theirs = result["two groups"][method]
        assert decisions(theirs) == decisions(report)
        assert gap(together, outputs) <= 1e-5


@pytest.mark.parametrize("method", ["DBCache, partial Bn, forecast", "DBPrune"])
def test_a_batch_split_over_two_groups_of_two(four, method):
    """Data and context parallel at once: each group decides for its own image."""
    job, seen = Job(seeds=(1, 2), steps=7), []
    outputs, report = draw_cached(tiny_flux(), OPTIONS[method], job)
    for rank, result in enumerate(four):
        together, theirs = result["two groups"]["split", method]
        assert decisions(theirs) == decisions(report, rank // 2)
        assert gap(together, outputs) <= 1e-5
        seen.append(decisions(theirs))
    assert seen[0] != seen[2]


def test_the_default_dtype_does_not_round_the_checksum(four):
    for rank in four:
        assert [d[1] for d in rank["bfloat16"]] == ["warmup", "below", "below", "below"]
