"""Whatever the installed OpenAI client can say, by its own types: drawn, perhaps with a warning, or refused by name.

The literals are walked, not listed, so a newer client with a new word or field is tried here before users try it.
"""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse, image_generate_params
from pydantic import TypeAdapter

from raycache.ingress.api import build_http_app
from raycache.presets import PRESET_NAMES
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.schemas import GenerationRequest
from tests.helpers.openai_surface import SETTINGS, Service, hints, values


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(build_http_app(service)) as http:
        yield http


@pytest.fixture(scope="module")
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="unused", max_retries=0, http_client=http)


HINTS = hints(image_generate_params.ImageGenerateParams)
SAID = [(name, value) for name, kind in HINTS.items() if name != "prompt" for value in values(kind)]

#: What cannot be drawn here, and the code that says so.
REFUSED = {
    ("size", "a word"): "invalid_value",
    ("output_format", "gif"): "invalid_value",
    ("output_format", "svg"): "invalid_value",
    ("response_format", "url"): "invalid_value",
    **{("model", word): "model_not_found" for word in values(HINTS["model"]) if word is not None},
}
#: What is drawn as if it had not been said, or otherwise than it was said.
WARNED = {
    ("background", "transparent"),
    ("moderation", "low"),
    *(("style", word) for word in ("vivid", "natural")),
    *(("complexity", word) for word in ("low", "medium", "high")),
    ("frame_count", 1),
    ("frame_duration_ms", 1),
    ("partial_images", 1),
    ("output_compression", 1),
    *(("quality", word) for word in ("standard", "hd", "xhigh", "max")),
}
QUALITIES = [value for name, value in SAID if name == "quality"]


def test_the_walk_finds_what_the_client_has():
    """Or the tests below would pass by having nothing to do."""
    assert {"low", "medium", "high", "auto", "standard", "hd"} <= set(QUALITIES)
    assert ("response_format", "url") in SAID
    assert ("stream", True) in SAID
    assert ("stream", False) in SAID
    assert set(HINTS) <= set(ImagesBody.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), SAID, ids=lambda part: str(part)[:40])
def test_all_that_the_client_can_say(client: openai.OpenAI, name: str, value: object):
    said = {name: value}
    if said.get("stream"):
        assert [event.type for event in client.images.generate(prompt="a circle", stream=True)][-1].endswith(
            "completed"
        )
        return
    if code := REFUSED.get((name, value)) if isinstance(value, str) else None:
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.generate(prompt="a circle", **said)
        assert (caught.value.param, caught.value.code) == (name, code)
        assert caught.value.type == "invalid_request_error"
        assert str(value) in caught.value.message
        return
    reply = client.images.generate(prompt="a circle", **said)
    assert len(reply.data) == (value if name == "n" and value else 1)
    warned = value is not None if name == "svg" else (name, value) in WARNED
    warnings = [warning for warning in reply.model_extra["warnings"] if f"`{name}" in warning]
    assert len(warnings) == warned
    assert reply.model_extra["warnings"] == warnings, "a warning of what was not said"
    if warned and name == "quality":
        assert any(f"`{preset}`" in warnings[0] for preset in PRESET_NAMES)


@pytest.mark.parametrize(
    "body",
    [
        # LiteLLM: what its caller named, and no more; a name of the model without its provider.
        {"model": "org/flux", "prompt": "a hat", "n": 2, "size": "512x512", "user": "u-1"},
        {"model": "org/flux", "prompt": "a hat", "quality": "high", "response_format": "b64_json", "style": None},
        # Open WebUI: always how many and how large, and base64, but of models that cannot give another.
        {"model": "org/flux", "prompt": "a hat", "n": 1, "size": "512x512", "response_format": "b64_json"},
        {"model": "org/flux", "prompt": "a hat", "n": 4, "size": "1024x1024"},
        # ... and what its administrator added.
        {"model": "org/flux", "prompt": "a hat", "n": 1, "size": "512x512", "num_inference_steps": 12, "seed": 7},
    ],
    ids=["litellm", "litellm, more", "open webui", "open webui, another model", "open webui, more"],
)
def test_others_ways_of_asking(http: TestClient, service: Service, body: dict[str, object]):
    headers = {"x-openwebui-user-name": "A%20B", "x-openwebui-user-id": "1", "x-stainless-lang": "python"}
    answer = http.post("/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    assert [bool(image["b64_json"]) for image in answer.json()["data"]] == [True] * int(str(body.get("n", 1)))
    order = service.orders[-1]
    assert (order.prompt, order.n) == ("a hat", body.get("n", 1))
    assert str(order.size) == body.get("size", str(SETTINGS.defaults.size))
    if "num_inference_steps" in body:
        assert (order.num_inference_steps, order.seed) == (body["num_inference_steps"], body["seed"])


@pytest.mark.parametrize("word", QUALITIES)
def test_every_quality_is_drawn_or_named_whatever_presets_there_are(
    client: openai.OpenAI, service: Service, monkeypatch: pytest.MonkeyPatch, word: str | None
):
    """Today's model without a file of presets, and one whose file holds no more than `fast`."""
    for names in (["exact"], ["fast"]):
        presets = {name: SETTINGS.policy.presets[name] for name in names}
        monkeypatch.setattr(service, "policy", SETTINGS.policy.model_copy(update={"presets": presets}))
        reply = client.images.generate(prompt="a circle", quality=word)
        assert all("quality" in warning for warning in reply.model_extra["warnings"])
        assert bool(reply.model_extra["warnings"]) == (
            word not in (None, "auto") and (word, names) != ("low", ["fast"])
        )


@pytest.mark.parametrize("word", QUALITIES)
def test_events_are_the_clients_own(client: openai.OpenAI, word: str | None):
    """The client does not judge what it receives; programs with its types do."""
    sent = {"partial_images": 1, "extra_body": {"seed": 3}}
    events = list(client.images.generate(prompt="a circle", stream=True, quality=word, **sent))
    partial, completed = events[-2:]
    for event, kind in ((partial, ImageGenPartialImageEvent), (completed, ImageGenCompletedEvent)):
        judged = TypeAdapter(kind).validate_python(event.model_dump(warnings=False), strict=True)
        assert judged.quality == ({"standard": "medium", "hd": "high"}.get(word, word) or "auto")
    assert completed.model_extra["seed"] == 3


def test_the_reply_is_the_clients_own(client: openai.OpenAI):
    for format in ("png", "jpeg", "webp"):
        reply = client.images.generate(prompt="a circle", output_format=format)
        judged = TypeAdapter(ImagesResponse).validate_python(reply.model_dump(warnings=False), strict=True)
        assert judged.output_format == format


def test_seed_minus_one_is_told_to_leave_the_field_out(client: openai.OpenAI):
    means = {
        "seed": "a random seed",
        "num_inference_steps": "default",
        "guidance_scale": "default",
        "timeout_s": "default",
    }
    for name, meaning in means.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.generate(prompt="a circle", extra_body={name: -1})
        assert caught.value.param == name
        assert "leave the field out for" in caught.value.message
        assert meaning in caught.value.message
    assert client.images.generate(prompt="a circle", extra_body={"seed": None}).model_extra["seeds"][0] >= 0
    with pytest.raises(ValueError, match="leave the field out for a random seed"):
        GenerationRequest(prompt="a circle", seed=-1)


def test_models_are_retrieved_by_their_names(client: openai.OpenAI):
    (listed,) = client.models.list()
    assert client.models.retrieve("org/flux") == listed
    for unknown in ("dall-e-3", "flux", "org", "org/flux/x", "ORG/flux", " ", "модель"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(unknown)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "'org/flux'" in caught.value.message
        assert unknown in caught.value.message
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt="a circle", model=unknown)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_endpoints_that_are_not_here_answer_in_the_clients_shape(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="/v1/images/variations"):
        client.images.create_variation(image=b"x")
    with pytest.raises(openai.APIStatusError) as caught:
        client.models.delete("org/flux")
    assert caught.value.status_code == 405
    assert caught.value.type == "invalid_request_error"
