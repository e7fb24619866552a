"""Two models in one application: each request reaches its own, and what happens to one does not touch the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from raycache import GenerationRequest
from raycache.demo.noise import build_noise_model
from raycache.protocol.errors import RequestError
from raycache.settings import AppSettings
from raycache.testing.inject import engines, kill_engine, wait_for
from tests.helpers.asking import draw, pixels, scraped

ONE, OTHER, ALIAS = "one", "org/other", "gpt-image-1"
DEPLOYMENT = {ONE: "Engine-one", OTHER: "Engine-org-other"}


@pytest.fixture(scope="module")
def deploy(
    http: str, gang_settings: Callable[..., AppSettings], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Deploys both, as a file does; a `user_config` for each that is named."""
    small = str(build_noise_model(tmp_path_factory.mktemp("models") / "small", layers=1, single_layers=2))
    args = gang_settings(
        ranks=1,
        parallel={"engine_cpus": 0.2},
        ingress={"num_cpus": 0.1},
        cache={"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
        defaults={"size": "64x64", "num_inference_steps": 4},
        reliability={"watchdog_floor_s": 60.0},
    ).model_dump(mode="json", exclude_unset=True)
    model = args.pop("model")
    args["models"] = [
        {"model": {**model, "name": ONE}},
        {"model": {**model, "name": OTHER, "path": small}, "defaults": {"num_inference_steps": 3}},
    ]
    args["aliases"] = {ALIAS: OTHER}

    def deploy(**user_config: dict[str, Any]) -> str:
        application = {
            "name": "pair",
            "route_prefix": "/pair",
            "import_path": "raycache.app:build",
            "args": args,
            "deployments": [{"name": DEPLOYMENT[name], "user_config": each} for name, each in user_config.items()],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))
        return f"{http}/pair"

    yield deploy
    serve.delete("pair")


@pytest.fixture(scope="module")
def url(deploy: Callable[..., str]) -> str:
    url = deploy()
    wait_for(lambda: {engine["model_name"] for engine in engines(url) if engine["ready"]} == {ONE, OTHER}, 200)
    return url


def engine_of(url: str, model: str) -> dict[str, Any]:
    """What the engine of a model says; empty while there is none."""
    return next((engine for engine in engines(url) if engine["model_name"] == model), {})


def image(url: str, model: str | None) -> np.ndarray:
    return pixels(draw(url, **({} if model is None else {"model": model})))


@pytest.fixture(scope="module")
def images(url: str) -> dict[str, np.ndarray]:
    return {model: image(url, model) for model in (ONE, OTHER)}


def test_both_draw_by_name_and_alias(url: str, images: dict[str, np.ndarray]):
    assert np.abs(images[ONE].astype(int) - images[OTHER]).mean() > 2
    np.testing.assert_array_equal(image(url, None), images[ONE])
    np.testing.assert_array_equal(image(url, ALIAS), images[OTHER])
    steps = [len(draw(url, model=model).json()["report"]["steps"]) for model in (ONE, ALIAS)]
    assert steps == [4, 3], "each has its own defaults"
    handle = serve.get_app_handle("pair")
    for model, meant in ((None, ONE), (ONE, ONE), (ALIAS, OTHER)):
        ask = GenerationRequest(prompt="a red circle left of a blue square", seed=7, model=model)
        np.testing.assert_array_equal(handle.generate.remote(ask).result().images[0], images[meant])
    with pytest.raises(RequestError, match="it has 'one', 'org/other', 'gpt-image-1'"):
        handle.generate.remote(GenerationRequest(prompt="x", model="dall-e-3")).result()
    assert [card.name for card in handle.models.remote().result()] == [ONE, OTHER]
    assert {status.model_name for status in handle.status.remote().result()} == {ONE, OTHER}


def test_openais_client_finds_them(url: str):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=60)
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == [ONE, OTHER, ALIAS]
    for name, model in listed.items():
        assert client.models.retrieve(name) == model
    assert listed[ONE].model_extra["capabilities"]["num_blocks"] == 6
    assert listed[ALIAS].model_extra["capabilities"]["num_blocks"] == 3
    assert listed[ALIAS].model_extra["alias_of"] == OTHER
    with pytest.raises(openai.NotFoundError, match="'org/other'"):
        client.models.retrieve("org/none")


def test_a_user_config_is_one_models_own(url: str, deploy: Callable[..., str], images: dict[str, np.ndarray]):
    pids = {model: engine_of(url, model)["pid"] for model in (ONE, OTHER)}
    deploy(**{ONE: {"limits": {"max_steps": 5}}, OTHER: {"limits": {"max_steps": -5}}})
    refused = wait_for(lambda: engine_of(url, OTHER)["user_config_refused"], 60)
    assert "limits.max_steps" in refused
    wait_for(lambda: draw(url, model=ONE, num_inference_steps=6).status_code == 400, 60)
    assert engine_of(url, ONE)["user_config_refused"] is None
    assert draw(url, model=OTHER, num_inference_steps=6).status_code == 200
    for model, expected in images.items():
        np.testing.assert_array_equal(image(url, model), expected)
    told = {model["id"]: model["limits"]["max_steps"] for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert told == {ONE: 5, OTHER: 100, ALIAS: 100}
    deploy(**{ONE: {}, OTHER: {}})
    wait_for(lambda: engine_of(url, OTHER)["user_config_refused"] is None, 60)
    wait_for(lambda: draw(url, model=ONE, num_inference_steps=6).status_code == 200, 60)
    assert {model: engine_of(url, model)["pid"] for model in pids} == pids


def test_the_death_of_one_models_engine_leaves_the_other_alone(url: str, images: dict[str, np.ndarray]):
    pids = {model: engine_of(url, model)["pid"] for model in (ONE, OTHER)}
    place = [engine["model_name"] for engine in engines(url)].index(OTHER)
    kill_engine(url, place)
    wait_for(lambda: not engine_of(url, OTHER), 60)
    assert draw(url, model=ALIAS).status_code == 503
    np.testing.assert_array_equal(image(url, ONE), images[ONE])
    ready = httpx.get(f"{url}/readyz")
    assert (ready.status_code, ready.json()["models"][ONE]["ready"]) == (200, True)
    assert ready.json()["models"][OTHER] == {"ready": False, "reason": "starting"}
    wait_for(lambda: engine_of(url, OTHER).get("ready"), 200)
    np.testing.assert_array_equal(image(url, OTHER), images[OTHER])
    assert engine_of(url, OTHER)["pid"] != pids[OTHER]
    assert engine_of(url, ONE)["pid"] == pids[ONE]


def test_metrics_tell_the_models_apart(url: str):
    def counted() -> set[str]:
        samples = scraped().get("ray_raycache_requests_total", [])
        return {one.labels["deployment"] for one in samples if one.labels.get("application") == "pair"}

    wait_for(lambda: counted() == set(DEPLOYMENT.values()), 60, every_s=1.0)

    def ready() -> dict[str, float]:
        samples = scraped().get("ray_raycache_model_ready", [])
        return {one.labels["model"]: one.value for one in samples if one.labels.get("application") == "pair"}

    # What is scraped is some seconds old, and one of them was dead before.
    wait_for(lambda: ready() == {ONE: 1.0, OTHER: 1.0}, 60, every_s=1.0)
