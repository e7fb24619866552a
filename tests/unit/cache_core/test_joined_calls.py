"""Several jobs in one call of the transformer: each decides, and draws, what it does alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_core import (
    BudgetCacheOptions,
    CacheOptions,
    CacheReport,
    DBCacheOptions,
    DBPruneOptions,
    FBCacheOptions,
    ForecastCacheOptions,
    NoCacheOptions,
    ScheduleCacheOptions,
    cache_session,
    job_call,
    job_session,
    joined,
)
from tests.helpers.joined import STACKED, TOGETHER, Drawing, Fault, call_together, draw_joined
from tests.helpers.tiny_flux import Job, decisions, draw_cached, gap, tiny_flux

MODEL = tiny_flux()
SHARED_BLOCKS: dict[str, CacheOptions] = {
    "none": NoCacheOptions(),
    "DBCache": DBCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=3, Bn_compute_blocks_ids=(1,), warmup_steps=2),
    "FBCache": FBCacheOptions(warmup_steps=2),
    "DBPrune": DBPruneOptions(Fn_compute_blocks=1, Bn_compute_blocks=1, non_prune_blocks_ids=(4,), warmup_steps=2),
    "ForecastCache": ForecastCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=1, warmup_steps=2),
    "BudgetCache": BudgetCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=1, num_steps=9),
    "ScheduleCache": ScheduleCacheOptions(Fn_compute_blocks=2, Bn_compute_blocks=1, warmup_steps=2),
}
CACHING = ("DBCache", "DBPrune", "FBCache", "ForecastCache")


def numbers(report: CacheReport, rows: int) -> list[Any]:
    return [decisions(report, row) for row in range(rows)]


@st.composite
def own_options(draw: st.DrawFn, method: str) -> CacheOptions:
    """Everything but which blocks run."""
    if method == "none":
        return SHARED_BLOCKS[method]
    if method == "ScheduleCache":
        mask = draw(st.lists(st.booleans(), max_size=9).map(tuple))
        own = {
            "steps_computation_mask": mask,
            "forecast_nodes": draw(st.integers(1, 3)),
            "fit_weights": draw(st.booleans()),
        }
        return SHARED_BLOCKS[method].model_copy(update=own)
    if method == "BudgetCache":
        own = {"speedup": draw(st.sampled_from([1.0, 1.3, 1.9, 2.5])), "warmup_steps": draw(st.integers(0, 4))}
        return SHARED_BLOCKS[method].model_copy(update=own)
    changed: dict[str, Any] = {
        "residual_diff_threshold": draw(st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 5.0])),
        "warmup_steps": draw(st.integers(0, 4)),
    }
    if method == "ForecastCache":
        changed["forecast_nodes"] = draw(st.integers(2, 3))
    else:
        changed["taylor_order"] = draw(st.integers(0, 2))
    most = "max_pruned_steps" if method == "DBPrune" else "max_cached_steps"
    changed[most] = draw(st.sampled_from([-1, 1, 3]))
    if method == "DBPrune":
        changed["enable_dynamic_prune_threshold"] = draw(st.booleans())
        changed["residual_cache_update_interval"] = draw(st.integers(1, 2))
    else:
        changed["max_continuous_cached_steps"] = draw(st.sampled_from([-1, 1, 2]))
    return SHARED_BLOCKS[method].model_copy(update=changed)


@st.composite
def traffic(
    draw: st.DrawFn, methods: Sequence[str] = tuple(sorted(SHARED_BLOCKS))
) -> tuple[list[tuple[Job, CacheOptions]], list[int]]:
    method = draw(st.sampled_from(methods))
    count = draw(st.integers(2, 4))
    specs = []
    for k in range(count):
        seeds = tuple(10 * k + i for i in range(draw(st.integers(1, 2))))
        specs.append((Job(seeds=seeds, steps=draw(st.integers(1, 9))), draw(own_options(method))))
    return specs, draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(traffic())
def test_everybody_decides_as_alone(traffic: tuple[list[tuple[Job, CacheOptions]], list[int]]):
    specs, arrivals = traffic
    for (job, options), (outputs, report) in zip(specs, draw_joined(MODEL, specs, arrivals), strict=True):
        alone, single = draw_cached(MODEL, options, job)
        assert numbers(report, len(job.seeds)) == numbers(single, len(job.seeds))
        assert gap(outputs, alone) <= 1e-4
        assert [step.step for step in report.steps] == list(range(job.steps))


#: Somewhere in a call, which has 1,000 (one row) to 1,800 operations, and it may fail several times over.
FAULTS = st.builds(
    Fault, st.lists(st.integers(0, 1500), min_size=1, max_size=2).map(tuple), st.sampled_from([0, 0, 1, 2])
)


@pytest.mark.slow
@settings(max_examples=16, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(traffic((*CACHING, "BudgetCache")), st.dictionaries(st.integers(1, 9), FAULTS, min_size=3, max_size=9))
def test_a_call_that_failed_and_is_made_again_never_was(
    traffic: tuple[list[tuple[Job, CacheOptions]], list[int]], faults: dict[int, Fault]
):
    """Whole or in two parts; the memory ends anywhere, also between what two images of a block remember."""
    specs, arrivals = traffic
    for (job, options), (outputs, report) in zip(specs, draw_joined(MODEL, specs, arrivals, None, faults), strict=True):
        alone, single = draw_cached(MODEL, options, job)
        assert numbers(report, len(job.seeds)) == numbers(single, len(job.seeds))
        assert gap(outputs, alone) <= 1e-4
        assert [step.step for step in report.steps] == list(range(job.steps))
        assert report.non_finite == single.non_finite


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 300, 700, 900, 1050, None])
@pytest.mark.parametrize("method", CACHING)
def test_every_call_fails_once(method: str, memory: int | None):
    """The property above would hold where no call fails. None: all operations succeed, but not what is done then."""
    specs = TOGETHER[method]
    with ExitStack() as stack:
        jobs = [
            Drawing(job, stack.enter_context(job_session(MODEL, options, name=str(k))), job.start())
            for k, (job, options) in enumerate(specs)
        ]
        for _ in range(5):
            held = [job.session.bytes_held() for job in jobs]
            with pytest.raises(torch.OutOfMemoryError):
                call_and_fail(jobs) if memory is None else call_together(MODEL, jobs, memory)
            assert all(job.session.bytes_held() <= before + 64 for job, before in zip(jobs, held, strict=True))
            call_together(MODEL, jobs[:1])
            call_together(MODEL, jobs[1:])
        for job, (spec, options) in zip(jobs, specs, strict=True):
            alone, single = draw_cached(MODEL, options, spec)
            rows = range(len(spec.seeds))
            assert [decisions(job.session.report, row) for row in rows] == [decisions(single, row)[:5] for row in rows]
            assert gap(job.outputs, alone[:5]) <= 1e-4


def call_and_fail(jobs: Sequence[Drawing]) -> None:
    """As where a gather around the transformer's own forward has no memory."""
    each = [job.arguments() for job in jobs]
    stacked = each[0] | {name: torch.cat([own[name] for own in each]) for name in STACKED}
    calls = [job_call(job.session, MODEL, (), own) for job, own in zip(jobs, each, strict=True)]
    with torch.no_grad(), joined(MODEL, calls):
        MODEL(**stacked)
        raise torch.OutOfMemoryError


@pytest.mark.parametrize("method", CACHING)
def test_another_call_than_the_one_that_failed_is_not_judged_by_it(method: str):
    """Memories that the failed call had replaced in part are let go."""
    options = SHARED_BLOCKS[method].model_copy(update={"residual_diff_threshold": 5.0})
    with job_session(MODEL, options) as session:
        job = Drawing(Job(steps=9), session, Job().start())
        for _ in range(4):
            call_together(MODEL, [job])
        with pytest.raises(torch.OutOfMemoryError):
            call_together(MODEL, [job], 300)
        job.latents = job.latents + 0.01
        for _ in range(2):
            call_together(MODEL, [job])
    assert [reason for _, reason, _ in decisions(session.report)] == ["warmup"] * 2 + ["below"] * 2 + ["first", "below"]


@pytest.mark.slow
@pytest.mark.parametrize("method", CACHING)
def test_jobs_of_other_steps_do_save_work(method: str):
    """The property above would hold where nothing is ever cached."""
    options = SHARED_BLOCKS[method].model_copy(update={"residual_diff_threshold": 0.5})
    drawn = draw_joined(MODEL, [(Job(seeds=(k,), steps=10), options) for k in range(3)], [0, 2, 5])
    assert all(report.computed_block_fraction[0] < 0.9 for _, report in drawn)


def test_first_block_cache_joins_dual_block_cache_of_the_same_blocks():
    first = FBCacheOptions(warmup_steps=1, residual_diff_threshold=0.3)
    dual = DBCacheOptions(Fn_compute_blocks=1, Bn_compute_blocks=0, warmup_steps=3)
    specs = [(Job(seeds=(1,), steps=8), first), (Job(seeds=(2,), steps=6), dual)]
    for (job, options), (outputs, report) in zip(specs, draw_joined(MODEL, specs, [0, 2]), strict=True):
        alone, single = draw_cached(MODEL, options, job)
        assert decisions(report) == decisions(single)
        assert gap(outputs, alone) <= 1e-4


def test_branches_of_a_job_keep_apart_in_joined_calls():
    """The prompt of one job beside the negative prompt of another."""
    options = SHARED_BLOCKS["DBCache"]
    with job_session(MODEL, options, name="a") as a, job_session(MODEL, options, name="b") as b:
        one, other = Drawing(Job(seeds=(1,)), a, Job(seeds=(1,)).start()), Drawing(Job(seeds=(2,)), b, Job().start())
        for context, counter in (("cond", "uncond"), ("uncond", "cond")):
            each = [one.arguments(), other.arguments()]
            stacked = each[0] | {name: torch.cat([own[name] for own in each]) for name in STACKED}
            calls = [job_call(a, MODEL, (), each[0], context), job_call(b, MODEL, (), each[1], counter)]
            with torch.no_grad(), joined(MODEL, calls):
                MODEL(**stacked)
        assert [step.branch for step in a.report.steps] == ["cond", "uncond"]
        assert [step.branch for step in b.report.steps] == ["uncond", "cond"]
        assert {step.step for session in (a, b) for step in session.report.steps} == {0}


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (SHARED_BLOCKS["FBCache"], "cannot share a call: the method and which blocks run must be equal"),
        (SHARED_BLOCKS["DBPrune"], "cannot share a call"),
        (SHARED_BLOCKS["DBCache"].model_copy(update={"Bn_compute_blocks_ids": (0,)}), "cannot share a call"),
    ],
)
def test_other_blocks_do_not_join(others: CacheOptions, words: str):
    with job_session(MODEL, SHARED_BLOCKS["DBCache"]) as a, job_session(MODEL, others) as b:
        calls = [job_call(own, MODEL, (), Drawing(Job(), own, Job().start()).arguments()) for own in (a, b)]
        with pytest.raises(ValueError, match=words), joined(MODEL, calls):
            pass


def test_a_job_is_not_twice_in_a_call_and_rows_are_counted():
    with job_session(MODEL, SHARED_BLOCKS["DBCache"]) as a:
        own = Drawing(Job(), a, Job().start()).arguments()
        call = job_call(a, MODEL, (), own)
        with pytest.raises(ValueError, match="twice in one joined call"), joined(MODEL, [call, call]):
            pass
        with pytest.raises(ValueError, match="no calls"), joined(MODEL, []):
            pass
        twice = own | {name: torch.cat([own[name]] * 2) for name in STACKED}
        with (
            pytest.raises(ValueError, match="1 rows, but the transformer was called with a batch of 2"),
            joined(MODEL, [call]),
        ):
            MODEL(**twice)


def test_only_the_next_call_is_joined():
    """Sessions of one job live beside, and calls of nobody are computed without a cache."""
    options = SHARED_BLOCKS["FBCache"]
    with job_session(MODEL, options) as a, cache_session(MODEL, options) as beside:
        drawing = Drawing(Job(), a, Job().start())
        own = drawing.arguments()
        with torch.no_grad(), joined(MODEL, [job_call(a, MODEL, (), own)]):
            MODEL(**own)
            MODEL(**own)
        assert (len(a.report.steps), len(beside.steps)) == (1, 1)
    with job_session(MODEL, options) as a:
        with torch.no_grad():
            MODEL(**own)
        assert not a.report.steps


def test_nothing_is_left_behind():
    with job_session(MODEL, SHARED_BLOCKS["DBPrune"]) as a:
        drawing = Drawing(Job(), a, Job().start())
        for _ in range(4):
            call_together(MODEL, [drawing])
        assert a.bytes_held() > 0
    assert a.bytes_held() == 0
    assert not hasattr(MODEL.transformer_blocks[0], "_diffusers_hook") or not (
        MODEL.transformer_blocks[0]._diffusers_hook.hooks
    )
