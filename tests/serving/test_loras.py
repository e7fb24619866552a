"""A service with LoRAs over HTTP: each request has its own, and a file that breaks takes no rank with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from raycache.settings import AppSettings
from raycache.testing.inject import engines_now
from tests.helpers.flux_pipe import load
from tests.helpers.loras import make_lora
from tests.serving.conftest import application


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras") / "broken.safetensors"


@pytest.fixture(scope="module")
def url(http: str, gang_settings: Callable[..., AppSettings], tiny_model: Path, broken: Path) -> Iterator[str]:
    good = make_lora(broken.parent / "good", load(tiny_model).transformer, 1)
    broken.write_bytes(good.read_bytes())  # whole until it is deployed
    loras = {"ink": {"path": str(good), "scale": 0.8}, "broken": {"path": str(broken)}}
    settings = gang_settings(
        model={"path": str(tiny_model), "dtype": "float32", "loras": loras},
        parallel={"engine_cpus": 0.2},
        ingress={"num_cpus": 0.1},
        cache={"type": "FBCache", "warmup_steps": 2},
        defaults={"size": "64x64", "num_inference_steps": 4},
    )
    yield from application("loras", "/loras", settings, http, count=1)


def _ask(url: str, lora: Any = None) -> httpx.Response:
    body = {"prompt": "a red circle", "seed": 7, "lora": lora}
    return httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)


def _image(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(reply.json()["data"][0]["b64_json"])))).astype(int)


def test_each_request_has_its_own_lora_and_a_broken_file_costs_one_job(url: str, broken: Path):
    (model,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert model["capabilities"]["loras"] == [{"name": "ink", "scale": 0.8}, {"name": "broken", "scale": 1.0}]
    plain, ink = _image(_ask(url)), _image(_ask(url, "ink"))
    assert np.abs(plain - ink).max() > 5
    assert np.abs(_image(_ask(url, {"name": "ink", "scale": 0.8})) - ink).max() == 0
    refused = _ask(url, "Ink")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "lora.name")
    assert "ink" in refused.json()["error"]["message"]
    broken.write_bytes(broken.read_bytes()[:-9])
    failed = _ask(url, "broken")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "lora_not_loaded")
    assert str(broken) not in failed.text
    np.testing.assert_array_equal(_image(_ask(url)), plain)
    (engine,) = engines_now(url)
    assert engine["gang"]["restarts"] == 0
