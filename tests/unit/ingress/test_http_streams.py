"""Streamed answers over HTTP, from a fake service."""

import base64
import io
import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from raycache.ingress.api import build_http_app
from raycache.ingress.sse import stream_events
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import RequestError
from tests.helpers.fake_service import FakeService, post


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def client(service):
    return TestClient(build_http_app(service), raise_server_exceptions=False)


def events(response) -> list[tuple[str, dict]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_stream(client, service):
    got = events(post(client, stream=True, partial_images=1, n=2, output_format="jpeg"))
    assert [name for name, _ in got] == [
        "raycache.progress",
        "image_generation.partial_image",
        "raycache.progress",
        "image_generation.completed",
        "image_generation.completed",
    ]
    assert got[0][1] == {
        "type": "raycache.progress",
        "step": 1,
        "steps": 2,
        "cached": [False],
        "residual_diff": [0.1],
        "seconds_left": 0.5,
    }
    assert got[1][1]["partial_image_index"] == 0
    assert [data["seed"] for _, data in got[3:]] == [0, 1]
    assert Image.open(io.BytesIO(base64.b64decode(got[3][1]["b64_json"]))).format == "JPEG"
    assert service.closed


def test_a_stream_that_fails_late_says_so_in_the_stream(client, service):
    service.late_failure = RequestError(504, "late", "timeout_s", "deadline_exceeded")
    name, data = events(post(client, stream=True))[-1]
    assert name == "error"
    assert data["error"]["code"] == "deadline_exceeded"
    assert service.closed


def test_a_stream_that_breaks_off_for_a_bug_says_so_too(client, service):
    service.late_failure = RuntimeError("/secret/path")
    got = events(post(client, stream=True))
    assert (got[-1][0], got[-1][1]["error"]["code"]) == ("error", "internal_error")
    assert "secret" not in json.dumps(got)
    assert service.closed


async def test_a_client_that_leaves_a_stream_closes_it(service):
    body = ImagesBody(prompt="a", stream=True)
    rest = service.generate_stream(body.request())
    stream = stream_events(await anext(rest), rest, body, service.metrics.answered)
    await anext(stream)
    assert not service.closed
    await stream.aclose()
    assert service.closed
