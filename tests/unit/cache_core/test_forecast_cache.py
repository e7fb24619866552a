"""ForecastCache and ScheduleCache on a whole model: beside a plain rewriting, by hand, and beside DBCache."""

from __future__ import annotations

import itertools
from types import MethodType
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cache_core import CacheType, ForecastCacheOptions, ScheduleCacheOptions, cache_session, parse_options
from tests.helpers.joined import draw_joined
from tests.helpers.plain import plain_forecast
from tests.helpers.tiny_flux import Job, decisions, draw, draw_cached, gap, tiny_flux

FORECAST: dict[str, Any] = {
    "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "warmup_steps": 2, "max_continuous_cached_steps": -1,
    "residual_diff_threshold": 0.22, "forecast_nodes": 3,
}  # fmt: skip
GRID = [
    FORECAST | {"Fn_compute_blocks": first, "Bn_compute_blocks": last, "forecast_nodes": nodes}
    for (first, last), nodes in itertools.product([(1, 0), (2, 2), (4, 1)], (2, 3))
] + [FORECAST | {"warmup_steps": warmup, "max_continuous_cached_steps": run} for warmup, run in [(0, 1), (3, 2)]]


@pytest.mark.slow
def test_it_decides_and_draws_what_plain_least_squares_does(flux):
    reused = computed = 0
    for seed, options in enumerate(GRID):
        job = Job(seeds=(seed,), steps=9)
        outputs, cached, told = plain_forecast(tiny_flux(), job, options)
        ours, report = draw_cached(flux, {"type": "ForecastCache", **options}, job)
        assert [step for step, d in enumerate(decisions(report)) if d[0]] == cached, options
        for record, plain in zip(report.steps, told, strict=True):
            image = record.images[0]
            assert (image.residual_diff is None) == (plain is None), options
            if plain is not None:
                assert image.residual_diff == pytest.approx(plain[0], rel=1e-3), options
                assert image.weights == pytest.approx(plain[1], abs=1e-3), options
        assert gap(ours, outputs) <= 1e-4, options
        reused += len(cached)
        computed += sum(d[1] == "threshold" for d in decisions(report))
    assert min(reused, computed) >= 10


def _evenly_moving_flux(clock: list[int]) -> Any:
    """Every block adds what moves along a line of its own, but all at the same changing pace."""
    model = tiny_flux()
    for index, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        generator = torch.Generator().manual_seed(index)
        start, way = torch.randn(2, 1, 16, 64, generator=generator)
        text = torch.randn(1, 4, 64, generator=generator)

        def forward(self, hidden_states, encoder_hidden_states, start=start, way=way, text=text, **_):
            at = [0, 2, 3, 7, 9, 10, 14][clock[0]]
            return encoder_hidden_states + at * text, hidden_states + start + at * way

        block.forward = MethodType(forward, block)
    return model


def test_what_moves_unevenly_along_a_line_is_forecast_exactly():
    """DBCache's question would say no in every step; a polynomial in the step's number would be wrong."""
    clock, job = [0], Job(steps=7)
    model = _evenly_moving_flux(clock)

    def tick(step: int) -> None:
        clock[0] = step

    exact = draw(model, job, on_step=tick)
    options = {"warmup_steps": 2, "residual_diff_threshold": 0.01, "max_continuous_cached_steps": -1}
    with cache_session(model, {"type": "ForecastCache", **options}) as report:
        outputs = draw(model, job, on_step=tick)
    assert [d[1] for d in decisions(report)] == ["warmup"] * 2 + ["below"] * 5
    assert gap(outputs, exact) <= 1e-4
    with cache_session(model, {"type": "FBCache", "warmup_steps": 2, "taylor_order": 1}) as report:
        draw(model, job, on_step=tick)
    assert not any(d[0] for d in decisions(report))


def test_where_no_fit_is_determined_each_job_of_a_call_takes_the_line_through_its_own_steps():
    """The first block's residual never moves, so it says nothing of how far along this step is."""
    model = tiny_flux()

    def forward(self, hidden_states, encoder_hidden_states, **_):
        return encoder_hidden_states, hidden_states + 1.0

    model.transformer_blocks[0].forward = MethodType(forward, model.transformer_blocks[0])
    options = ForecastCacheOptions(warmup_steps=2, max_continuous_cached_steps=-1)
    specs = [(Job(seeds=(1,), steps=7), options), (Job(seeds=(2, 3), steps=5), options)]
    for _, report in draw_joined(model, specs, (0, 2)):
        told = [step.images[-1].weights for step in report.steps]
        assert told == [[], [], *([1.0 - at, float(at)] for at in range(2, len(told)))]


def test_the_report_tells_error_and_weights_where_there_are_any(flux):
    _, report = draw_cached(flux, {"type": "ForecastCache", **FORECAST}, Job(steps=6))
    entries = [step["images"][0] for step in report.to_dict(detail=True)["steps"]]
    assert ["weights" in entry for entry in entries] == [False] * 2 + [True] * 4
    assert [len(entry.get("weights", ())) for entry in entries][:4] == [0, 0, 2, 3]
    assert all(sum(entry["weights"]) == pytest.approx(1) for entry in entries[2:])
    assert all(entry["differences"] == {0: [entry["residual_diff"], 0.22]} for entry in entries[2:])
    _, published = draw_cached(flux, {"type": "FBCache", "warmup_steps": 2, "taylor_order": 2}, Job(steps=6))
    assert not any("weights" in step["images"][0] for step in published.to_dict()["steps"])


SCHEDULES: list[tuple[dict[str, Any], str]] = [
    ({}, "CCC.C.C.C."),
    ({"compute_every": 3}, "CCC..C..C."),
    ({"compute_every": 1}, "CCCCCCCCCC"),
    ({"warmup_steps": 0}, "CC.C.C.C.C"),
    ({"warmup_steps": 0, "compute_every": 4}, "C..C...C.."),
    ({"steps_computation_mask": (1, 0, 1, 0, 0, 1, 0)}, "CCC..C.CCC"),
    ({"steps_computation_mask": (0, 0, 1, 0), "warmup_steps": 0}, "C.C.CCCCCC"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "strip"), SCHEDULES)
@pytest.mark.parametrize("more", [{}, {"fit_weights": True, "forecast_nodes": 3}, {"forecast_nodes": 1}])
def test_a_schedule_is_kept_whatever_the_image(flux, options, strip, more):
    chosen = parse_options({"type": "ScheduleCache", "warmup_steps": 3} | options | more)
    _, report = draw_cached(flux, chosen, Job(seeds=(1, 2), steps=10))
    for image in (0, 1):
        assert "".join("." if d[0] else "C" for d in decisions(report, image)) == strip
        assert chosen.known_share(10, 8) == pytest.approx(report.computed_block_fraction[image])
    assert bool(chosen.why_nothing_is_saved(10, 8)) == ("." not in strip)
    weights = [step.images[0].weights for step in report.steps if step.images[0].cached]
    assert all(1 <= len(own) <= chosen.forecast_nodes for own in weights)


def test_a_schedule_without_fit_is_the_published_forecast(flux):
    """As FBCache at a threshold that never computes, with the steps between said by its limit of a row."""
    job = Job(steps=11)
    schedule = {"type": "ScheduleCache", "warmup_steps": 2, "compute_every": 3}
    limited = {"type": "FBCache", "warmup_steps": 2, "max_cached_steps": -1, "residual_diff_threshold": 1e9}
    mine, told = draw_cached(flux, schedule, job)
    theirs, report = draw_cached(flux, limited | {"max_continuous_cached_steps": 2, "taylor_order": 1}, job)
    assert [d[0] for d in decisions(told)] == [d[0] for d in decisions(report)]
    assert gap(mine, theirs) == 0.0


ZEROS = {"type": "ScheduleCache", "fit_weights": True, "steps_computation_mask": (0,) * 8, "warmup_steps": 2}


@pytest.mark.parametrize(
    ("options", "reused"),
    [({"type": "ForecastCache", **FORECAST, "residual_diff_threshold": 9.0}, "below"), (ZEROS, "schedule")],
)
def test_a_step_that_is_not_finite_is_computed_and_forgotten(flux, options, reused):
    now, job = [0], Job(steps=8)
    handle = flux.transformer_blocks[0].norm1.register_forward_hook(
        lambda module, args, output: tuple(part * (float("nan") if now[0] == 5 else 1.0) for part in output)
    )
    with cache_session(flux, options) as report, torch.no_grad():
        for now[0] in range(job.steps):
            moved = job.start() + 0.1 * now[0]
            flux(hidden_states=moved, timestep=job.timestep(now[0]), **job.static())
    handle.remove()
    assert [d[1] for d in decisions(report)] == ["warmup"] * 2 + [reused] * 3 + ["non_finite", "first", reused]
    assert report.non_finite == 1


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"type": "ForecastCache", "forecast_nodes": 1}, "forecast_nodes", "greater than or equal to 2"),
        ({"type": "ForecastCache", "forecast_nodes": 4}, "forecast_nodes", "less than or equal to 3"),
        ({"type": "ForecastCache", "taylor_order": 1}, "taylor_order", "not permitted"),
        ({"type": "ForecastCache", "residual_diff_threshold": -1}, "residual_diff_threshold", "greater than or equal"),
        ({"type": "ScheduleCache", "compute_every": 0}, "compute_every", "greater than or equal to 1"),
        ({"type": "ScheduleCache", "residual_diff_threshold": 0.1}, "residual_diff_threshold", "not permitted"),
        ({"type": "ScheduleCache", "steps_computation_mask": [2]}, "steps_computation_mask", "boolean"),
    ],
)
def test_bad_options_are_named(options, field, words):
    with pytest.raises(ValidationError) as caught:
        parse_options(options)
    [error] = caught.value.errors()
    assert field in error["loc"]
    assert words in error["msg"]


@pytest.mark.parametrize("method", [CacheType.ForecastCache, CacheType.ScheduleCache])
def test_default_options_are_the_models_own(method):
    defaults = CacheType.default_options(method)
    assert defaults.pop("cache_type") is method
    model = {"ForecastCache": ForecastCacheOptions, "ScheduleCache": ScheduleCacheOptions}[method]
    assert model(**defaults) == model()
    assert CacheType.type(method.name.lower()) is method
