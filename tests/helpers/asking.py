"""Requests that tests send over HTTP, some of which are abandoned while they wait or run."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import ray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

URL = "/v1/images/generations"
ASK = {"prompt": "a red circle left of a blue square", "size": "64x64", "n": 1, "seed": 7}
#: Takes minutes: for jobs that are not meant to be finished.
ENDLESS = {**ASK, "num_inference_steps": 5000}


def draw(url: str, **fields: Any) -> httpx.Response:
    """The answer to ``ASK`` with ``fields`` changed; waits for a gang that is being rebuilt."""
    return httpx.post(url + URL, json={**ASK, **fields}, timeout=240)


def draw_when_told(url: str, **fields: Any) -> httpx.Response:
    """As :func:`draw`, by a client that retries after `Retry-After`: free places may be kept for others."""
    for _ in range(20):
        answer = draw(url, **fields)
        if answer.status_code != 429:
            break
        time.sleep(int(answer.headers["retry-after"]))
    return answer


def pixels(response: httpx.Response, index: int = 0) -> np.ndarray:
    """The image of a reply, which must have one."""
    assert response.status_code == 200, response.text
    data = base64.b64decode(response.json()["data"][index]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)))


def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """All events of a streamed request."""
    with httpx.stream("POST", url + URL, json={**body, "stream": True}, timeout=240) as response:
        return [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]


@contextlib.contextmanager
def being_drawn(url: str, **fields: Any) -> Iterator[None]:
    """``ENDLESS`` with ``fields`` changed, running while the block runs; afterwards its client leaves.

    A streamed answer reports its first step. If that does not come, the request may be queued behind another endless
    one, so it is sent again; also if it arrives while an engine is still dropping the previous job.
    """
    body = {**ENDLESS, "stream": True, **fields}
    for patience_s in (10, 20, 40):
        with httpx.stream("POST", url + URL, json=body, timeout=patience_s) as response:
            if response.status_code == 429:
                time.sleep(2)
                continue
            assert response.status_code == 200, response.read()
            # Held while the block runs: the connection closes with what reads from it.
            lines = response.iter_lines()
            if _tells_of_a_step(lines, patience_s):
                yield
                return
    raise TimeoutError("no engine has started this request")


def _tells_of_a_step(lines: Iterator[str], patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    with contextlib.suppress(httpx.ReadTimeout, StopIteration):
        while time.monotonic() < end:
            if next(lines) == "event: raycache.progress":
                return True
    return False


@contextlib.contextmanager
def sent(url: str, **fields: Any) -> Iterator[None]:
    """``ASK`` with ``fields`` changed, sent before the block runs; afterwards its client leaves without an answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        body = json.dumps({**ASK, **fields})
        connection.request("POST", urlsplit(url).path + URL, body, {"content-type": "application/json"})
        yield
    finally:
        connection.close()


def scraped() -> dict[str, list[Sample]]:
    """The metrics of this Ray, by name; they include other applications that ran on it."""
    node = ray.nodes()[0]
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30).text
    names: dict[str, list[Sample]] = {}
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        names.setdefault(sample.name, []).append(sample)
    return names
