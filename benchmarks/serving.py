"""The real application on its own Ray, for benchmarks over HTTP."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from PIL import Image

from raycache.settings import AppSettings

__all__ = ["PATH", "Answer", "application", "ask", "settings_of"]

PATH = "/v1/images/generations"


@dataclass
class Answer:
    """One reply: status, ``time.time()`` of its arrival, its seconds, its body, and a checksum of the image."""

    status: int
    at: float
    seconds: float
    body: dict[str, Any]
    image: str | None


def settings_of(config: Path, tiny: bool, **sections: Any) -> AppSettings:
    """The settings of a ``serve run`` file with sections changed; ``tiny`` = a model of 2 + 4 blocks."""
    arguments = yaml.safe_load(config.read_text())["applications"][0]["args"]
    if tiny:
        from raycache.demo.noise import build_noise_model

        folder = Path(tempfile.gettempdir()) / "raycache-bench-tiny"
        arguments["model"]["path"] = str(build_noise_model(folder, layers=2, single_layers=4))
        arguments["cache"] = {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "warmup_steps": 2}
    for name, values in sections.items():
        old = arguments.get(name)
        arguments[name] = {**old, **values} if isinstance(old, dict) and isinstance(values, dict) else values
    return AppSettings.model_validate(arguments)


@contextlib.contextmanager
def application(settings: AppSettings) -> Iterator[str]:
    """Start the application and yield its URL once it is ready. Ray and Serve end with the block."""
    import ray
    from ray import serve

    from raycache.app import build
    from raycache.testing.inject import readiness, wait_for

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Logical CPUs, so that it can be placed on any machine.
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(settings), name="flux", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: readiness(url).get("ready"), 300)
        yield url
        serve.shutdown()
    finally:
        ray.shutdown()


def ask(url: str, timeout_s: float = 600.0, **body: Any) -> Answer:
    """Request an image; a transport error becomes an answer with status 0."""
    began = time.time()
    try:
        reply = httpx.post(url + PATH, json={"prompt": "a red circle", "seed": 7, **body}, timeout=timeout_s)
        status, content = reply.status_code, reply.json()
    except (httpx.HTTPError, ValueError) as error:
        status, content = 0, {"error": {"message": f"{type(error).__name__}: {error}"}}
    now = time.time()
    image = None
    if status == 200:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content["data"][0]["b64_json"]))))
        image = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Answer(status, now, now - began, content, image)
