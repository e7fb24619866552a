"""What holds for any options and any job: limits, exactness, images and branches that know nothing of each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cache_core import CacheReport, cache_session, parse_options
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, gap, opened, tiny_flux

#: Few blocks, as examples are many: both kinds, and room for Fn, a middle of two blocks, and Bn.
MODEL = tiny_flux(2, 3)
BLOCKS = 5

#: Derandomized: the same cases on every run, so that a red suite means a change of code.
several = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

limits = st.integers(-1, 4)
thresholds = st.sampled_from([0.05, 0.08, 0.11, 0.15, 0.19, 0.23, 0.28, 0.35, 0.5])
steps = st.integers(1, 9)
paces = st.sampled_from([0.0, 0.1, 0.3, 0.8])


@st.composite
def dbcache(draw: st.DrawFn, order: int | None = None) -> dict[str, Any]:
    first = draw(st.integers(1, BLOCKS))
    last = draw(st.integers(0, BLOCKS - first))
    return {
        "type": "DBCache",
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "warmup_steps": draw(st.integers(0, 4)),
        "max_cached_steps": draw(limits),
        "max_continuous_cached_steps": draw(limits),
        "residual_diff_threshold": draw(thresholds),
        "Bn_compute_blocks_ids": tuple(draw(st.sets(st.integers(0, last - 1)))) if last else (),
        "non_compute_blocks_diff_threshold": draw(st.sampled_from([0.0, 0.05, 0.1, 0.2])),
        "taylor_order": draw(st.integers(0, 2)) if order is None else order,
    }


@st.composite
def dbprune(draw: st.DrawFn, order: int | None = None) -> dict[str, Any]:
    first = draw(st.integers(0, BLOCKS))
    return {
        "type": "DBPrune",
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": draw(st.integers(0, BLOCKS - first)),
        "warmup_steps": draw(st.integers(0, 4)),
        "max_pruned_steps": draw(limits),
        "residual_diff_threshold": draw(thresholds),
        "enable_dynamic_prune_threshold": draw(st.booleans()),
        "max_dynamic_prune_threshold": draw(st.sampled_from([None, 0.1, 0.4])),
        "residual_cache_update_interval": draw(st.integers(1, 3)),
        "non_prune_blocks_ids": tuple(draw(st.sets(st.integers(0, BLOCKS - 1), max_size=4))),
        "taylor_order": draw(st.integers(0, 2)) if order is None else order,
    }


@st.composite
def forecast(draw: st.DrawFn) -> dict[str, Any]:
    first = draw(st.integers(1, BLOCKS))
    return {
        "type": "ForecastCache",
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": draw(st.integers(0, BLOCKS - first)),
        "warmup_steps": draw(st.integers(0, 4)),
        "max_cached_steps": draw(limits),
        "max_continuous_cached_steps": draw(limits),
        "residual_diff_threshold": draw(thresholds),
        "forecast_nodes": draw(st.integers(2, 3)),
    }


methods = st.one_of(dbcache(), dbprune(), forecast())


def _longest_run(flags: list[bool]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest


def _on_the_edge(report: CacheReport) -> bool:
    """A difference so near its threshold that rounding decides: such a case shows nothing."""
    return any(
        difference is not None and math.isclose(difference, threshold, rel_tol=1e-4)
        for step in report.steps
        for image in step.images
        for difference, threshold in image.differences.values()
    )


@pytest.mark.slow
@several
@given(options=dbcache() | forecast(), seed=st.integers(0, 50), count=steps, pace=paces)
def test_dbcache_keeps_its_limits(options, seed, count, pace):
    _, report = draw_cached(MODEL, options, Job(seeds=(seed,), steps=count, pace=pace))
    flags = [d[0] for d in decisions(report)]
    assert not any(flags[: options["warmup_steps"]])
    assert [d[1] == "warmup" for d in decisions(report)] == [step < options["warmup_steps"] for step in range(count)]
    assert options["max_cached_steps"] < 0 or sum(flags) <= options["max_cached_steps"]
    assert options["max_continuous_cached_steps"] < 0 or _longest_run(flags) <= options["max_continuous_cached_steps"]
    asked = [step.images[0] for step in report.steps if step.images[0].residual_diff is not None]
    assert all(i.cached == (i.residual_diff < options["residual_diff_threshold"]) for i in asked)
    assert all((image.reason == "below") == image.cached for step in report.steps for image in step.images)
    never = {*range(options["Fn_compute_blocks"]), *range(BLOCKS - options["Bn_compute_blocks"], BLOCKS)}
    if not options.get("Bn_compute_blocks_ids"):
        computed = sum(len(never) if cached else BLOCKS for cached in flags)
        assert report.computed_block_fraction == [pytest.approx(computed / (BLOCKS * count))]


@pytest.mark.slow
@several
@given(options=dbprune(), seed=st.integers(0, 50), count=steps, pace=paces)
def test_dbprune_keeps_its_limits(options, seed, count, pace):
    _, report = draw_cached(MODEL, options, Job(seeds=(seed,), steps=count, pace=pace))
    pruned = [set(d[2]) for d in decisions(report)]
    assert not any(pruned[: options["warmup_steps"]])
    assert [d[1] == "warmup" for d in decisions(report)] == [step < options["warmup_steps"] for step in range(count)]
    assert options["max_pruned_steps"] < 0 or sum(map(bool, pruned)) <= options["max_pruned_steps"]
    never = {
        *range(options["Fn_compute_blocks"]),
        *range(BLOCKS - options["Bn_compute_blocks"], BLOCKS),
        *options["non_prune_blocks_ids"],
    }
    assert not any(blocks & never for blocks in pruned)
    for step, blocks in zip(report.steps, pruned, strict=True):
        image = step.images[0]
        assert blocks == {b for b, (difference, threshold) in image.differences.items() if difference < threshold}
        assert (image.reason == "below") == bool(blocks)
        assert image.computed_blocks == BLOCKS - len(blocks)


@pytest.mark.slow
@several
@given(options=methods, seed=st.integers(0, 50), count=steps)
def test_threshold_zero_is_no_cache_bit_for_bit(options, seed, count):
    job = Job(seeds=(seed, seed + 1), steps=count)
    outputs, report = draw_cached(MODEL, {**options, "residual_diff_threshold": 0.0}, job)
    assert all(torch.equal(a, b) for a, b in zip(outputs, draw(MODEL, job), strict=True))
    assert report.computed_block_fraction == [1.0, 1.0]
    assert report.to_dict()["totals"]["cached_steps"] == [0, 0]


@pytest.mark.slow
@settings(several, max_examples=40)
@given(options=methods, seeds=st.lists(st.integers(0, 50), min_size=2, max_size=3), count=steps, pace=paces)
def test_an_image_of_a_batch_equals_the_image_alone(options, seeds, count, pace):
    """Published implementations decide for the batch as a whole."""
    job = Job(seeds=tuple(seeds), steps=count, pace=pace)
    outputs, report = draw_cached(MODEL, options, job)
    assume(not _on_the_edge(report))
    for image in range(len(seeds)):
        alone, single = draw_cached(MODEL, options, job.alone(image))
        assert decisions(report, image) == decisions(single)
        assert gap([o[image : image + 1] for o in outputs], alone) <= 1e-5
        assert report.computed_block_fraction[image] == single.computed_block_fraction[0]


@pytest.mark.slow
@settings(several, max_examples=40)
@given(options=methods, own=st.lists(thresholds, min_size=2, max_size=3), seed=st.integers(0, 50), count=steps)
def test_each_image_is_judged_by_its_own_thresholds(options, own, seed, count):
    """What is asked for beside an image, however bold, does not change it."""
    tail = {"non_compute_blocks_diff_threshold"} & options.keys()
    each = [{**options, "residual_diff_threshold": t, **dict.fromkeys(tail, t / 2)} for t in own]
    job = Job(seeds=tuple(range(seed, seed + len(own))), steps=count)
    outputs, report = draw_cached(MODEL, each, job)
    assume(not _on_the_edge(report))
    for image, options in enumerate(each):
        alone, single = draw_cached(MODEL, options, job.alone(image))
        assert decisions(report, image) == decisions(single)
        assert gap([o[image : image + 1] for o in outputs], alone) <= 1e-5


def test_images_of_a_batch_do_disagree():
    """The property above is worth something only where images of one batch part."""
    for options in (
        {"type": "DBCache", "Fn_compute_blocks": 2, "Bn_compute_blocks": 2, "Bn_compute_blocks_ids": (1,)},
        {"type": "DBPrune", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "taylor_order": 1},
    ):
        threshold = 0.26 if options["type"] == "DBCache" else 0.12
        job = Job(seeds=(1, 2, 3), steps=10)
        _, report = draw_cached(MODEL, {**options, "warmup_steps": 2, "residual_diff_threshold": threshold}, job)
        parted = sum(len({(i.cached, tuple(i.pruned_blocks)) for i in step.images}) > 1 for step in report.steps)
        assert parted >= 3, options


@pytest.mark.slow
@several
@given(options=methods, seeds=st.tuples(st.integers(0, 50), st.integers(0, 50)), count=steps, pace=paces)
def test_branches_know_nothing_of_each_other(options, seeds, count, pace):
    """cond and uncond in turn, as guidance calls them, equal each of them drawn alone."""
    jobs = {"cond": Job(seeds=(seeds[0],), steps=count, pace=pace), "uncond": Job(seeds=(seeds[1],), steps=count)}
    latents = {name: job.start() for name, job in jobs.items()}
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in jobs}
    with cache_session(MODEL, options) as report, torch.no_grad():
        for step in range(count):
            for name, job in jobs.items():
                with MODEL.cache_context(name):
                    output = MODEL(
                        hidden_states=latents[name], timestep=job.timestep(step), return_dict=False, **job.static()
                    )[0]
                outputs[name].append(output)
                latents[name] = latents[name] - 0.1 * output + job.drift(step)
    for name, job in jobs.items():
        alone, single = draw_cached(MODEL, options, job)
        assert decisions(report, branch=name) == decisions(single)
        assert all(torch.equal(a, b) for a, b in zip(outputs[name], alone, strict=True))
    assert [(s.branch, s.step) for s in report.steps] == [(n, i) for i in range(count) for n in ("cond", "uncond")]


@pytest.mark.slow
@several
@given(options=methods, seeds=st.lists(st.integers(0, 50), min_size=1, max_size=2), count=steps)
def test_nothing_is_left_behind(options, seeds, count):
    before = [dict(module.__dict__) for module in MODEL.modules()]
    with opened(MODEL, options) as session:
        draw(MODEL, Job(seeds=tuple(seeds), steps=count))
    assert session.bytes_held() == 0
    assert [dict(module.__dict__) for module in MODEL.modules()] == before


@pytest.mark.slow
@several
@given(options=methods, seed=st.integers(0, 50), count=steps)
def test_the_same_job_twice_is_the_same_image(options, seed, count):
    parsed, job = parse_options(options), Job(seeds=(seed,), steps=count)
    first, first_report = draw_cached(MODEL, parsed, job)
    second, second_report = draw_cached(MODEL, parsed, job)
    assert first_report.to_dict(detail=True) == second_report.to_dict(detail=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
