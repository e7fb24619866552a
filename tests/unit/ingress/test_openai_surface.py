"""Whatever the installed OpenAI client can say, by its own types: drawn, perhaps with a warning, or refused by name.

The literals are walked, not listed, so a newer client with a new word or field is tried here before users try it.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, get_args, get_origin

import numpy as np
import openai
import pytest
import typing_extensions
from fastapi.testclient import TestClient
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse, image_generate_params
from pydantic import TypeAdapter

from raycache.engine.convert import result_of
from raycache.ingress.api import build_http_app
from raycache.presets import PRESET_NAMES
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import JobOutput
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, GenerationResult, PreviewEvent, ProgressEvent
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate(
    {"model": {"path": "black-forest-labs/FLUX.1-dev", "name": "org/flux"}, "parallel": {"ranks_per_replica": 1}}
)
MODEL = Capabilities("folder", 57, 24, 512, "FluxPipeline", 16)


class Service:
    """Judges requests as an ingress does, and draws black images as an engine answers."""

    settings = SETTINGS
    keys = ()
    max_body_bytes = 1 << 20
    max_timeout_s = 3600.0
    shortage = None
    asleep = False
    policy = SETTINGS.policy

    class metrics:
        """Counts nothing."""

        answered = staticmethod(lambda error: None)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        order = resolve(request, self.policy, MODEL, model_name="org/flux", ranks=1)
        output = JobOutput(np.zeros((order.n, 16, 16, 3), np.uint8), None, 0.0, 0.0, 0.0)
        return result_of(order, output, 1.0, MODEL, self.policy.presets)

    async def generate_stream(self, request: GenerationRequest) -> AsyncIterator[object]:
        result = await self.generate(request)
        yield ProgressEvent(1, 1, [], [], None)
        for index in range(request.partial_images):
            yield PreviewEvent(index, list(result.images))
        yield result


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[openai.OpenAI]:
    with TestClient(build_http_app(service)) as http:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key="unused", max_retries=0, http_client=http)


def values(kind: Any) -> list[Any]:
    """What a type of the client's lets a user say: every literal, and one value of each other type."""
    origin = get_origin(kind)
    if origin in (typing.Required, typing_extensions.Required):
        return values(get_args(kind)[0])
    if origin is Literal:
        return list(get_args(kind))
    if typing.is_typeddict(kind) or typing_extensions.is_typeddict(kind):
        fields = typing_extensions.get_type_hints(kind)
        return [{name: value} for name, field in fields.items() for value in values(field)]
    if get_args(kind):
        return [value for member in get_args(kind) for value in values(member)]
    return {str: ["a word"], int: [1], float: [1.0], bool: [True], type(None): [None]}[kind]


def hints() -> dict[str, Any]:
    """Every field of the client's request, streaming or not."""
    found: dict[str, Any] = {}
    for kind in get_args(image_generate_params.ImageGenerateParams):
        for name, field in typing_extensions.get_type_hints(kind).items():
            found[name] = found[name] | field if name in found else field
    return found


HINTS = hints()
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
