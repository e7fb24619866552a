"""An illegal ``user_config`` changes nothing where images are drawn, and keeps no later engine from starting."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from raycache.engine.engine import Engine
from tests.helpers.fake_gang import SETTINGS, FakeGang

GOOD = {"defaults": {"num_inference_steps": 5}}
ILLEGAL = [
    {"limits": {"max_steps": -5}},
    {"defaults": {"num_inference_steps": 9999}},
    {"cache": {"type": "DBCache", "Fn_compute_blocks": 99}},
    {"cache": {"type": "magic"}},
    {"presets": {"fastest": {"type": "none"}}},
    {"nonsense": 1},
    {"defaults": 5},
    {"limits": [1]},
    {"presets": "fast"},
    {1: 2},
    [GOOD],
    "limits",
    5,
]


class Cluster:
    """Remembers, as Ray does, in JSON's types."""

    def __init__(self) -> None:
        self.kept: Any = None

    def load(self) -> Any:
        return self.kept

    def save(self, user_config: Any) -> None:
        self.kept = user_config


def engine(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, user_config: Any = None) -> Engine:
    """As Serve starts one: ``reconfigure`` is called before anybody asks it, where there is a user_config."""
    monkeypatch.setattr("raycache.engine.engine._CHECK_S", 0.01)
    engine = Engine(SETTINGS, FakeGang, cluster)
    if user_config is not None:
        engine.reconfigure(user_config)
    return engine


def draws(engine: Engine, cluster: Cluster) -> Engine:
    """The engine is in service, and has been for a moment."""
    engine.poll()
    for _ in range(200):
        if cluster.kept == engine._user_config._good:
            return engine
        engine._stopped.wait(0.01)
    raise AssertionError("what is in force was not kept")


@pytest.fixture(params=ILLEGAL, ids=str)
def illegal(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("before", [None, GOOD], ids=["settings alone", "a good one"])
def test_the_last_good_one_stays_in_force_also_for_engines_that_start_later(
    illegal: Any, before: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    cluster = Cluster()
    first = draws(engine(cluster, monkeypatch, before), cluster)
    good = first.status().policy
    first.reconfigure(illegal)
    assert first.status().policy == good
    later = draws(engine(cluster, monkeypatch, illegal), cluster)
    assert later.status().policy == good
    for one in (first, later):
        reason = one.status().user_config_refused
        assert reason
        assert reason in caplog.text
        assert "\n" not in reason
    third = engine(cluster, monkeypatch, illegal)
    assert third.status().policy == good, "starting with an illegal one does not make it the last good one"
    third.reconfigure({"limits": {"max_steps": 77}})
    assert third.status().user_config_refused is None
    assert third.status().policy.limits.max_steps == 77


def test_a_first_deployment_fails(illegal: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"."):
        engine(Cluster(), monkeypatch, illegal)


def test_a_last_good_one_that_new_settings_do_not_allow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    cluster = Cluster()
    cluster.kept = {"defaults": {"num_inference_steps": 9999}}
    with caplog.at_level(logging.ERROR):
        started = engine(cluster, monkeypatch, {"nonsense": 1})
    assert started.status().policy == SETTINGS.policy
    assert "nonsense" in caplog.text
    assert "num_inference_steps" in caplog.text


def test_the_metric_follows(monkeypatch: pytest.MonkeyPatch):
    one, told = engine(Cluster(), monkeypatch), []
    monkeypatch.setattr(one._metrics.user_config_refused, "set", told.append)
    one.poll()
    one.reconfigure({"nonsense": 1})
    one.poll()
    one.reconfigure({})
    one.poll()
    assert told == [0.0, 1.0, 0.0]


def test_a_cluster_that_cannot_remember_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    cluster = Cluster()
    monkeypatch.setattr(cluster, "save", lambda user_config: 1 / 0)
    one = engine(cluster, monkeypatch, GOOD)
    one.poll()
    for _ in range(200):
        if "cannot be saved" in caplog.text:
            break
        one._stopped.wait(0.01)
    assert caplog.text.count("cannot be saved") == 1
