"""`{"type": "auto"}`: a goal becomes options, by what was measured on the model; the rest is refused with a way out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cache_core.forecast_options import BudgetCacheOptions, ForecastCacheOptions
from cache_core.options import FBCacheOptions, NoCacheOptions
from raycache.engine.engine import Engine
from raycache.gang.warmup import warm_ups
from raycache.policy import Policy
from raycache.presets import Presets, load_presets
from raycache.presets.auto import AutoCache, ForecastCurve, GoalError, concrete
from raycache.protocol.errors import RequestError, from_validation_error
from raycache.protocol.model_cards import ModelCard
from raycache.protocol.schemas import GenerationRequest
from raycache.settings import AppSettings, WarmupShape
from raycache.size import Size
from raycache.tune.sweep import Point, forecast_curve
from tests.helpers.fake_gang import MODEL, SETTINGS, FakeGang
from tests.unit.protocol.test_resolve import ask

CURVE = ForecastCurve(warmup_steps=4, points=((50.0, 0.01), (40.0, 0.04), (30.0, 0.08)))
POLICY = SETTINGS.policy.model_copy(update={"curve": CURVE})


def test_a_measured_psnr_gives_its_threshold() -> None:
    for psnr, threshold in CURVE.points:
        options = ask(policy=POLICY, cache={"type": "auto", "target_psnr": psnr}).cache
        assert options == ForecastCacheOptions(warmup_steps=4, residual_diff_threshold=threshold)


def test_between_measured_ones_the_threshold_falls_steadily_with_the_goal() -> None:
    goals = [30 + k / 4 for k in range(81)]
    thresholds = [CURVE.options(goal).residual_diff_threshold for goal in goals]
    assert all(one > two for one, two in pairwise(thresholds))
    # Half way in dB is half way in the threshold's logarithm: 0.02 is as far from 0.01 as from 0.04.
    assert CURVE.options(45.0).residual_diff_threshold == pytest.approx(0.02)


def test_a_goal_below_all_that_was_measured_takes_the_boldest_setting() -> None:
    assert CURVE.options(12.0).residual_diff_threshold == 0.08


def test_a_goal_above_all_that_was_measured_is_refused_with_what_is_possible() -> None:
    with pytest.raises(RequestError, match=r"cache.target_psnr: no measured setting .* reaches 51 dB; .* has 50 dB"):
        ask(policy=POLICY, cache={"type": "auto", "target_psnr": 51})


def test_a_goal_in_db_on_a_model_nobody_measured_says_how_to_measure_it() -> None:
    with pytest.raises(RequestError, match=r"python -m raycache\.tune.*\"speedup\": 2") as refused:
        ask(policy=SETTINGS.policy.model_copy(update={"curve": None}), cache={"type": "auto", "target_psnr": 35})
    assert (refused.value.status, refused.value.param) == (400, "cache.target_psnr")


def test_a_speed_up_needs_no_measurement() -> None:
    options = ask(policy=SETTINGS.policy.model_copy(update={"curve": None}), cache={"type": "auto", "speedup": 1.5})
    assert options.cache == BudgetCacheOptions(speedup=1.5)


@pytest.mark.parametrize(
    "goal",
    [{}, {"target_psnr": 35, "speedup": 2}, {"target_psnr": 0}, {"target_psnr": 61}, {"speedup": 0.9}, {"psnr": 35}],
)
def test_a_goal_is_one_and_possible(goal: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationRequest.model_validate({"prompt": "a", "cache": {"type": "auto", **goal}})
    told = from_validation_error(refused.value, GenerationRequest.model_fields)
    assert told.param == ("cache" if len(goal) != 1 else f"cache.{next(iter(goal))}")


def test_a_rebuild_does_not_read_the_presets_again(tmp_path: Path) -> None:
    """A gang is rebuilt with the options of its start, whatever has happened to the file since."""
    (file := tmp_path / "presets.yaml").write_text(
        "model: demo\nsource: a test\npresets: {exact: {type: none}}\n"
        "curve: {warmup_steps: 3, points: [[50, 0.01], [30, 0.09]]}\n"
    )
    settings = SETTINGS.model_copy(
        update={
            "model": SETTINGS.model.model_copy(update={"presets": file}),
            "cache": AutoCache(target_psnr=40),
            "warmup": [WarmupShape(size=Size(64, 64))],
        }
    )
    seen: list[AppSettings] = []

    def gang(own: AppSettings) -> FakeGang:
        seen.append(own)
        return FakeGang(own)

    Engine(settings, gang)
    file.unlink()
    jobs = [each.job for each in warm_ups(seen[0], MODEL, probe=False)]
    assert jobs[0].cache == ForecastCacheOptions(warmup_steps=3, residual_diff_threshold=0.03)


def test_the_deployment_may_have_a_goal_and_change_it(tmp_path: Any) -> None:
    (file := tmp_path / "presets.yaml").write_text(
        "model: demo\nsource: a test\npresets: {exact: {type: none}}\n"
        "curve: {warmup_steps: 3, points: [[50, 0.01], [30, 0.09]]}\n"
    )
    settings = AppSettings.model_validate(
        {"model": {"path": "demo", "presets": str(file)}, "cache": {"type": "auto", "target_psnr": 40}}
    )
    policy = settings.policy
    assert policy.cache == ForecastCacheOptions(warmup_steps=3, residual_diff_threshold=0.03)
    changed = policy.changed({"cache": {"type": "auto", "target_psnr": 30}})
    assert changed.cache == ForecastCacheOptions(warmup_steps=3, residual_diff_threshold=0.09)
    with pytest.raises(ValidationError) as refused:
        policy.changed({"cache": {"type": "auto", "target_psnr": 0}})
    assert from_validation_error(refused.value, Policy.model_fields).param == "cache.target_psnr"
    other = {"warmup_steps": 2, "points": [[40, 0.5], [20, 0.9]]}
    changed = policy.changed({"curve": other, "cache": {"type": "auto", "target_psnr": 20}})
    assert changed.cache == ForecastCacheOptions(warmup_steps=2, residual_diff_threshold=0.9)
    with pytest.raises(GoalError, match="has not been measured"):
        policy.changed({"curve": None, "cache": {"type": "auto", "target_psnr": 20}})
    with pytest.raises(GoalError, match=r"^cache\.target_psnr: no measured setting .* reaches 55 dB"):
        policy.changed({"cache": {"type": "auto", "target_psnr": 55}})
    assert policy.changed({"cache": {"type": "none"}}).cache == NoCacheOptions()


def test_clients_can_read_which_goals_are_possible() -> None:
    card = ModelCard("flux", (), True, True, None, None, 4, POLICY)
    assert card.document(1)["target_psnr"] == {"min": 30.0, "max": 50.0}
    unknown = replace(card, policy=POLICY.model_copy(update={"curve": None}))
    assert unknown.document(1)["target_psnr"] is None


def test_the_bundled_model_takes_goals_in_db() -> None:
    curve = load_presets("demo").curve
    assert curve is not None
    for name, options in load_presets("demo").presets.items():
        if name != "exact":  # the presets are points of the curve
            assert isinstance(options, ForecastCacheOptions)
            assert options.warmup_steps == curve.warmup_steps
            assert options.residual_diff_threshold in [threshold for _, threshold in curve.points]


def test_other_options_are_no_goals() -> None:
    assert concrete(FBCacheOptions(), None) == FBCacheOptions()
    assert AutoCache(speedup=2).type == "auto"


@pytest.mark.parametrize(
    "points", [[[50, 0.01]], [[40, 0.01], [50, 0.02]], [[50, 0.02], [40, 0.01]], [[50, 0], [4, 1]]]
)
def test_a_curve_must_fall(points: list[list[float]]) -> None:
    body = {"model": "x", "source": "y", "presets": {"exact": {"type": "none"}}}
    with pytest.raises(ValidationError):
        Presets.model_validate({**body, "curve": {"warmup_steps": 4, "points": points}})


def measured(psnr: float, options: Any) -> Point:
    return Point("f", options.to_dict(), 0.5, psnr, 1.0, 0.0, 1.0)


def test_tune_makes_the_curve_of_the_shortest_warm_up() -> None:
    def forecast(threshold: float, warmup: int) -> ForecastCacheOptions:
        return ForecastCacheOptions(warmup_steps=warmup, residual_diff_threshold=threshold)

    points = [
        measured(40.0, FBCacheOptions()),
        measured(41.5, forecast(0.03, 4)),
        measured(52.0, forecast(0.01, 4)),
        measured(52.3, forecast(0.015, 4)),  # by chance above the more careful one
        measured(53.0, forecast(0.01, 8)),
        measured(45.0, forecast(0.03, 8)),
        measured(39.0, forecast(0.03, 2)),
    ]
    points.append(measured(41.496, forecast(0.04, 4)))  # equal when rounded
    assert forecast_curve(points) == ForecastCurve(warmup_steps=4, points=((52.0, 0.01), (41.5, 0.03)))
    assert forecast_curve(points[:2]) is None
