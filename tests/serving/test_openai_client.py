"""OpenAI's own Python client, pointed at the server."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def client(flux: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{flux}/v1", api_key="unused", max_retries=0, timeout=60)


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_generate(client):
    reply = client.images.generate(
        model="flux", prompt="a red circle", n=2, size="64x64", output_format="webp", quality="low", user="me"
    )
    assert [opened(image.b64_json).size for image in reply.data] == [(64, 64)] * 2
    assert opened(reply.data[0].b64_json).format == "WEBP"
    assert reply.created > 0
    assert reply.size == "64x64"


def test_our_fields_travel_in_extra_body(client):
    cache = {"type": "DBCache", "Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "warmup_steps": 1}
    reply = client.images.generate(
        prompt="a red circle", size="64x64", extra_body={"seed": 7, "num_inference_steps": 4, "cache": cache}
    )
    extra = reply.model_extra
    assert extra["seeds"] == [7]
    assert extra["report"]["options"]["Bn_compute_blocks"] == 0
    assert len(extra["report"]["steps"]) == 4


def test_errors_are_the_clients_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", size="48x48")
    assert caught.value.param == "size"
    assert caught.value.code == "invalid_value"
    assert "64x48" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="dall-e-3")


def test_streaming(client):
    events = list(client.images.generate(prompt="a red circle", size="64x64", stream=True, partial_images=2))
    kinds = [event.type for event in events]
    assert kinds.count("raycache.progress") == 6
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert opened(partial[0].b64_json).size[0] <= 64
    assert kinds[-1] == "image_generation.completed"
    assert opened(events[-1].b64_json).size == (64, 64)
    assert events[-1].usage.total_tokens == 0


def test_a_stream_that_is_refused_or_fails_raises(client):
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a", size="48x48", stream=True)
    with pytest.raises(openai.APIError, match="deadline"):
        list(client.images.generate(prompt="a", stream=True, extra_body={"num_inference_steps": 5000, "timeout_s": 2}))


def test_models(client):
    (listed,) = client.models.list()
    assert listed.id == "flux"
    assert client.models.retrieve("flux") == listed
    with pytest.raises(openai.NotFoundError, match="it has 'flux'"):
        client.models.retrieve("org/other")
