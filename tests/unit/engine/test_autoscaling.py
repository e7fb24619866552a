"""How many engines the queued seconds ask for, and what Serve is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from ray import cloudpickle

from raycache.app import build
from raycache.engine.autoscaling import JOBS, QUEUED_S, QueuedSeconds, autoscaling_config
from raycache.engine_settings import AutoscalingSettings
from raycache.settings import AppSettings

SETTINGS = AutoscalingSettings(min_replicas=0, max_replicas=3, target_queued_seconds=10, metrics_interval_s=1.5)


@pytest.mark.parametrize(
    ("waits", "jobs", "wanted"),
    [
        ({}, {}, 0),
        ({"a": 0.0, "b": 0.0}, {"a": 0, "b": 0}, 0),
        ({"a": 0.0}, {"a": 1}, 1),  # longer than predicted, but there is a job
        ({"a": 10.0}, {"a": 4}, 1),
        ({"a": 10.1}, {"a": 4}, 2),
        ({"a": 3.0, "b": 18.0}, {"a": 1, "b": 2}, 3),
        ({"a": 0.0, "b": 0.0}, {"a": 0, "b": 0.2}, 1),  # a mean over a few seconds
    ],
)
def test_engines_wanted(waits, jobs, wanted):
    context = SimpleNamespace(aggregated_metrics={QUEUED_S: waits, JOBS: jobs})
    assert QueuedSeconds(10.0)(context) == (wanted, {})


def test_before_any_engine_reported():
    assert QueuedSeconds(10.0)(SimpleNamespace(aggregated_metrics=None)) == (0, {})


def test_serve_gets_the_settings_and_a_policy_that_it_can_unpickle():
    config = autoscaling_config(SETTINGS)
    assert (config.min_replicas, config.max_replicas) == (0, 3)
    assert (config.metrics_interval_s, config.look_back_period_s) == (1.5, 4.5)
    assert config.policy.policy_kwargs == {"target_queued_seconds": 10}
    policy = cloudpickle.loads(config.policy.get_serialized_policy_def())(**config.policy.policy_kwargs)
    assert policy(SimpleNamespace(aggregated_metrics={QUEUED_S: {"a": 25.0}}))[0] == 3


def _engine_options(**fields):
    settings = AppSettings.model_validate({"model": {"path": "noise"}, **fields})
    return build(settings)._bound_deployment.init_args[1]["flux"]._bound_deployment


def test_the_application_scales_only_where_it_is_told_to():
    scaled = _engine_options(autoscaling=SETTINGS.model_dump())
    assert scaled._deployment_config.autoscaling_config.max_replicas == 3
    fixed = _engine_options(num_replicas=2)
    assert fixed._deployment_config.autoscaling_config is None
    assert fixed.num_replicas == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, ["min_replicas 3", "max_replicas 2"]),
        ({"autoscaling": {"max_replicas": 2}, "num_replicas": 2}, ["num_replicas", "autoscaling", "leave"]),
    ],
)
def test_settings_that_contradict_themselves(fields, words):
    with pytest.raises(ValidationError) as caught:
        AppSettings.model_validate({"model": {"path": "noise"}, **fields})
    for word in words:
        assert word in str(caught.value)
