"""What the builder asks of Serve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ray.serve.context import _serve_request_context
from ray.serve.deployment import Deployment

from raycache import front
from raycache.app import build
from raycache.logs import request_id
from raycache.settings import AppSettings
from tests.unit.ingress.test_ingress import Engines, Ingress

ROOT = Path(__file__).parents[2]


def ingress_of(**ingress: object) -> Deployment:
    settings = AppSettings.model_validate({"model": {"path": "noise"}, "ingress": ingress})
    return build(settings)._bound_deployment


def test_an_ingress_that_hangs_is_replaced_soon_whatever_hangs_in_it():
    config = ingress_of()._deployment_config
    seconds = 3 * (config.health_check_timeout_s + config.health_check_period_s)
    assert seconds <= 25, "Serve's own time-out makes it 94"
    assert ingress_of(health_check_timeout_s=20)._deployment_config.health_check_timeout_s == 20
    # Without a check of ours Serve asks its own loop, and looks at the one of requests after a quarter of an hour.
    assert hasattr(ingress_of().func_or_class, "check_health")


def test_places_for_requests_are_more_than_bodies_may_take():
    assert ingress_of().max_ongoing_requests > 4 * front.Bodies()._most


@pytest.mark.parametrize(
    ("file", "pattern"),
    [("Makefile", r"^export (\w+) = (\S+)$"), ("deploy/Dockerfile", r"^ENV (\w+)=(\S+) RAY_SERVE_PROXY_HEALTH")],
)
def test_wherever_we_start_ray_the_front_is_in_its_proxy(file, pattern):
    assert (front.VARIABLE, front.CALLBACK) in re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("callback", [None, front.CALLBACK])
async def test_where_it_is_not_the_ingress_says_so(monkeypatch, caplog, callback):
    monkeypatch.delenv(front.VARIABLE, raising=False)
    if callback:
        monkeypatch.setenv(front.VARIABLE, callback)
    ingress = Ingress(
        AppSettings.model_validate({"model": {"path": "noise"}}), {"flux": Engines()}, {"flux": [{"CPU": 1.0}]}
    )
    assert (front.CALLBACK in caplog.text) == (callback is None)
    await ingress.check_health()


def test_ids_in_our_logs_are_clean_without_a_front_too():
    from ray.serve.context import _RequestContext

    token = _serve_request_context.set(_RequestContext(request_id="a\u2028b\x1b[31m" + "x" * 500))
    try:
        assert request_id() == "a?b?[31m" + "x" * 120
    finally:
        _serve_request_context.reset(token)
