"""Edits as OpenAI's client sends them."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse, image_edit_params
from pydantic import TypeAdapter

from cache_core.forecast_options import BudgetCacheOptions
from cache_core.options import DBCacheOptions
from raycache.protocol.edit_bodies import EditBody
from tests.helpers.edits import IMAGE, MASK, OTHER, REDRAWN, last
from tests.helpers.image_files import scene
from tests.helpers.openai_surface import Service, hints, values


@pytest.fixture
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="unused", max_retries=0, http_client=http)


def test_one_image(client: openai.OpenAI, service: Service):
    reply = client.images.edit(image=IMAGE, prompt="make it blue", n=2, extra_body={"seed": 3})
    TypeAdapter(ImagesResponse).validate_python(reply.model_dump(warnings=False), strict=True)
    assert len(reply.data) == 2
    assert reply.model_extra["seeds"] == [3, 4]
    assert reply.model_extra["warnings"] == []
    order = last(service)
    assert (order.inputs.task, order.prompt, order.n) == ("edit", "make it blue", 2)
    assert (order.inputs.images[0] == scene()).all()
    assert order.inputs.mask is None


def test_a_goal_in_place_of_a_cache(client: openai.OpenAI, service: Service):
    client.images.edit(image=IMAGE, prompt="a hat", extra_body={"cache": {"type": "auto", "speedup": 2.5}})
    assert last(service).cache == BudgetCacheOptions(speedup=2.5)
    with pytest.raises(openai.BadRequestError, match=r"raycache\.tune") as refused:
        client.images.edit(image=IMAGE, prompt="a hat", extra_body={"cache": {"type": "auto", "target_psnr": 40}})
    assert refused.value.param == "cache.target_psnr"


def test_several_images_and_a_mask(client: openai.OpenAI, service: Service):
    client.images.edit(image=[IMAGE, OTHER], mask=MASK, prompt="a hat")
    inputs = last(service).inputs
    assert inputs.task == "inpaint"
    assert [image.shape for image in inputs.images] == [(16, 24, 3), (24, 40, 3)]
    assert (inputs.images[0] == scene()).all(), "in their order"
    assert inputs.mask.tolist() == REDRAWN.tolist()
    assert (inputs.mask.dtype, inputs.images[0].dtype) == (np.uint8, np.uint8)


@pytest.mark.parametrize("images", [IMAGE, [IMAGE, OTHER]], ids=["one", "two"])
@pytest.mark.parametrize("mask", [openai.omit, MASK], ids=["whole", "masked"])
def test_streams(client: openai.OpenAI, service: Service, images: Any, mask: Any):
    sent = {"prompt": "a hat", "stream": True, "partial_images": 2, "output_format": "webp", "quality": "high"}
    events = list(client.images.edit(image=images, mask=mask, **sent))
    assert [event.type for event in events] == [
        "raycache.progress",
        "image_edit.partial_image",
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    for event, kind in zip(events[1:], [ImageEditPartialImageEvent] * 2 + [ImageEditCompletedEvent], strict=True):
        judged = TypeAdapter(kind).validate_python(event.model_dump(warnings=False), strict=True)
        assert (judged.quality, judged.output_format) == ("high", "webp")
    assert last(service).inputs.task == ("edit" if mask is openai.omit else "inpaint")
    assert last(service).partial_images == 2


FILES = {"image", "mask", "markup"}

HINTS = hints(image_edit_params.ImageEditParams)

SAID = [(name, value) for name, kind in HINTS.items() if name not in {*FILES, "prompt"} for value in values(kind)]

REFUSED = {
    ("size", "a word"): "size",
    ("output_format", "gif"): "output_format",
    ("output_format", "svg"): "output_format",
    ("response_format", "url"): "response_format",
    **{("model", word): "model" for word in values(HINTS["model"]) if word is not None},
}

WARNED = {
    ("background", "transparent"),
    ("input_fidelity", "high"),
    *(("complexity", word) for word in ("low", "medium", "high")),
    ("frame_count", 1),
    ("frame_duration_ms", 1),
    ("partial_images", 1),
    ("output_compression", 1),
    *(("quality", word) for word in ("standard", "xhigh", "max")),
}


def test_the_walk_finds_what_the_client_has():
    assert ("input_fidelity", "high") in SAID
    assert ("stream", True) in SAID
    assert set(HINTS) <= set(EditBody.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), SAID, ids=lambda part: str(part)[:40])
def test_all_that_the_client_can_say(client: openai.OpenAI, name: str, value: object):
    sent: dict[str, Any] = {"image": IMAGE, "prompt": "a circle", name: value}
    if value is True:
        assert [event.type for event in client.images.edit(**sent)][-1] == "image_edit.completed"
        return
    if isinstance(value, str) and (name, value) in REFUSED:
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.edit(**sent)
        assert caught.value.param == name
        assert value in caught.value.message
        return
    reply = client.images.edit(**sent)
    assert len(reply.data) == 1
    warnings = reply.model_extra["warnings"]
    # Of an object whose only member is null nothing is left in a form.
    warned = value not in (None, {"reasoning": None}) if name == "svg" else (name, value) in WARNED
    assert len(warnings) == warned
    assert all(f"`{name}" in warning for warning in warnings)


def test_a_markup_is_refused_by_name(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="markup") as caught:
        client.images.edit(image=IMAGE, markup=MASK, prompt="a circle")
    assert caught.value.param == "markup"


def test_our_own_fields_in_a_form(client: openai.OpenAI, service: Service):
    own = {
        "num_inference_steps": 12,
        "guidance_scale": 2.5,
        "strength": 0.5,
        "timeout_s": 60,
        "seed": None,
        "cache": {"type": "DBCache", "residual_diff_threshold": 0.2, "Fn_compute_blocks": 1},
    }
    client.images.edit(image=IMAGE, prompt="123", extra_body=own)
    order = last(service)
    assert (order.prompt, order.num_inference_steps, order.guidance_scale) == ("123", 12, 2.5)
    assert (order.inputs.task, order.inputs.strength) == ("image-to-image", 0.5)
    assert isinstance(order.cache, DBCacheOptions)
    assert (order.cache.residual_diff_threshold, order.cache.Fn_compute_blocks) == (0.2, 1)
