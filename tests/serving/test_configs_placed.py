"""The configurations on a cluster with pretended GPUs: production is placed and draws; what cannot be is explained."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
import yaml
from PIL import Image
from ray import serve
from ray.serve.api import RunTarget
from ray.util import placement_group_table

from raycache.app import build
from raycache.settings import AppSettings
from tests.serving.conftest import wait_until

FOLDER = Path(__file__).parents[2] / "serve_configs"
ASK = {"prompt": "a red circle", "size": "64x64", "seed": 7, "num_inference_steps": 4}


def settings(name: str, **changes: dict) -> AppSettings:
    """A configuration file, with sections changed."""
    args = yaml.safe_load((FOLDER / name).read_text())["applications"][0]["args"]
    return AppSettings.model_validate(
        {key: {**args.get(key, {}), **changes.get(key, {})} for key in {*args, *changes} if key != "warmup"}
    )


@pytest.fixture
def application(http):
    """Deploys under a route of its own; deleted again afterwards."""
    names = []

    def deploy(name: str, wanted: AppSettings, wait: bool = True) -> str:
        names.append(name)
        serve.run_many(
            [RunTarget(build(wanted), name=name, route_prefix=f"/{name}")], wait_for_applications_running=wait
        )
        return f"{http}/{name}"

    yield deploy
    for name in names:
        serve.delete(name)


def test_production_gets_one_gpu_per_rank_and_draws(application, tiny_model):
    wanted = settings(
        "flux_dbcache.yaml",
        model={"path": str(tiny_model), "dtype": "float32"},
        parallel={"device": "cpu", "rank_gpus": 1.0, "threads_per_rank": 1},
        cache={"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2},
        defaults={"size": "64x64"},
    )
    url = application("production", wanted)
    reply = httpx.post(f"{url}/v1/images/generations", json=ASK, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["report"]["totals"]["collectives"] == 4
    (group,) = [
        group
        for group in placement_group_table().values()
        if group["state"] == "CREATED" and any("GPU" in bundle for bundle in group["bundles"].values())
    ]
    assert group["strategy"] == "STRICT_PACK"
    with_gpu = [bundle for bundle in group["bundles"].values() if "GPU" in bundle]
    assert [bundle["GPU"] for bundle in with_gpu] == [1.0] * 4
    assert all(bundle["accelerator_type:L20"] == 0.001 for bundle in with_gpu)
    (engine,) = httpx.get(f"{url}/readyz").json()["engines"]
    assert len({rank["pid"] for rank in engine["gang"]["ranks"]}) == 4
    assert ray.available_resources().get("GPU", 0) == 0


def test_the_laptop_configuration_with_four_ranks(application, tiny_model):
    wanted = settings(
        "laptop_two_ranks.yaml",
        model={"path": str(tiny_model)},
        parallel={"ranks_per_replica": 4},
        cache={"Fn_compute_blocks": 1, "Bn_compute_blocks": 1},
    )
    url = application("laptop", wanted)
    reply = httpx.post(f"{url}/v1/images/generations", json=ASK, timeout=60)
    assert reply.status_code == 200, reply.text
    (engine,) = httpx.get(f"{url}/readyz").json()["engines"]
    assert len(engine["gang"]["ranks"]) == 4

    asked = [{**ASK, "seed": seed, "num_inference_steps": 8 + 4 * seed} for seed in range(4)]
    alone = [image(url, body) for body in asked]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda body: image(url, body), asked))
    for shared, expected in zip(at_once, alone, strict=True):
        np.testing.assert_allclose(shared, expected, atol=1, rtol=0)


def image(url: str, body: dict) -> np.ndarray:
    reply = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][0]["b64_json"]))), int)


def test_a_gang_that_does_not_fit_is_explained_at_once(application, tiny_model):
    # Serve gives a replica that was never placed its whole time to drain, too.
    wanted = settings(
        "flux_dbcache.yaml",
        model={"path": str(tiny_model)},
        parallel={"ranks_per_replica": 8},
        reliability={"drain_timeout_s": 2.0},
    )
    url = application("giant", wanted, wait=False)

    def explained() -> bool:
        reply = httpx.post(f"{url}/v1/images/generations", json=ASK, timeout=60)
        return reply.status_code == 503 and "8 GPU" in reply.text

    wait_until(explained, timeout=60)
    reply = httpx.post(f"{url}/v1/images/generations", json=ASK)
    assert int(reply.headers["retry-after"]) > 0
    message = reply.json()["error"]["message"]
    assert "4 GPU" in message, "what is there"
    assert "ranks_per_replica to 4" in message, "what would fit"
    assert httpx.get(f"{url}/readyz").json()["ready"] is False
