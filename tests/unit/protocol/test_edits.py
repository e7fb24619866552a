"""Which task a request with images is, what the model makes of it, and how large its images are."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from raycache import EditRequest
from raycache.limits import DefaultSettings, LimitSettings
from raycache.protocol.capabilities import Capabilities, Task
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import ResolvedRequest
from raycache.protocol.tasks import USUAL_STRENGTH
from raycache.settings import AppSettings
from raycache.size import Size
from tests.helpers.image_files import file, scene

POLICY = AppSettings.model_validate({"model": {"path": "noise"}}).policy
ALL: tuple[Task, ...] = ("text-to-image", "image-to-image", "edit", "inpaint")
MASK = np.zeros((16, 24), np.uint8)
MASK[2:8, 2:8] = 255


def model(*tasks: Task, most: int = 3) -> Capabilities:
    return Capabilities("folder", 57, 24, 512, "SomePipeline", 16, tasks=tasks, max_inputs=most)


def resolved(request: EditRequest, of: Capabilities, ranks: int = 1, policy=POLICY) -> ResolvedRequest:
    return resolve(request, policy, of, model_name="flux", ranks=ranks)


def refused(request: EditRequest, of: Capabilities, policy=POLICY) -> RequestError:
    with pytest.raises(RequestError) as caught:
        resolved(request, of, policy=policy)
    assert caught.value.status == 400
    return caught.value


def asked(**given: object) -> EditRequest:
    return EditRequest(prompt="a hat", **{"image": scene(), **given})


@pytest.mark.parametrize(
    ("given", "task"),
    [
        ({}, "edit"),
        ({"image": [scene(), scene()]}, "edit"),
        ({"strength": 0.4}, "image-to-image"),
        ({"mask": MASK}, "inpaint"),
        ({"mask": MASK, "strength": 0.4}, "inpaint"),
    ],
)
def test_what_it_brings_says_the_task(given: dict, task: Task):
    inputs = resolved(asked(**given), model(*ALL)).inputs
    assert (inputs.task, inputs.strength) == (task, given.get("strength"))
    assert refused(asked(**given), model("text-to-image", most=0)).code == "unsupported_task"


def test_a_model_without_edits_makes_image_to_image_of_one_image():
    order = resolved(asked(), model("image-to-image"))
    assert (order.inputs.task, order.inputs.strength) == ("image-to-image", USUAL_STRENGTH)
    assert (order.inputs.images[0] == scene()).all()
    assert resolved(asked(), model("image-to-image", "edit")).inputs.strength is None
    error = refused(asked(image=[scene(), scene()]), model("image-to-image"))
    assert (error.param, error.code) == ("image", "unsupported_task")


def test_what_a_model_has_not_is_named_by_the_field_that_asks_for_it():
    assert refused(asked(strength=0.5), model("edit")).param == "strength"
    assert refused(asked(mask=MASK), model("edit")).param == "mask"
    error = refused(asked(), model("inpaint"))
    assert error.param == "image"
    assert "with a `mask`" in error.message
    assert "it supports: inpaint" in error.message


def test_how_many_images():
    assert "at most 2" in refused(asked(image=[scene()] * 3), model("edit", most=2)).message
    assert "at most 1 for image-to-image" in refused(asked(image=[scene()] * 2, strength=0.5), model(*ALL)).message
    assert len(resolved(asked(image=[scene()] * 3), model(*ALL)).inputs.images) == 3
    with pytest.raises(RequestError, match="needs at least one image"):
        asked(image=[])


def test_masks_that_do_not_fit():
    error = refused(asked(mask=MASK.T), model(*ALL))
    assert error.param == "mask"
    assert "16x24" in error.message
    assert "24x16" in error.message
    assert "it marks nothing to generate again" in refused(asked(mask=0 * MASK), model(*ALL)).message


def test_images_that_are_too_large_are_refused_wherever_they_were_decoded():
    policy = POLICY.model_copy(update={"limits": LimitSettings(max_input_pixels=24 * 16 - 1)})
    error = refused(asked(), model(*ALL), policy)
    assert error.param == "image"
    assert "24x16 is 384 pixels, at most 383" in error.message


@pytest.mark.parametrize(
    ("image", "ranks", "size"),
    [
        ((512, 512), 1, (512, 512)),
        ((512, 500), 1, (512, 496)),
        ((1024, 1024), 4, (1024, 1024)),
        ((4000, 3000), 1, (1184, 880)),
        ((3000, 4000), 4, (880, 1184)),
        ((8000, 100), 1, (8000, 96)),
        ((1, 1), 1, (16, 16)),
        ((1, 1), 4, (32, 32)),
        ((1, 4000), 1, (16, 4000)),
    ],
)
def test_without_a_size_the_images_are_like_the_first_image(image: tuple, ranks: int, size: tuple):
    """At most as many pixels as an image that names no size has; of a photograph the shape is kept."""
    first = np.zeros((image[1], image[0], 3), np.uint8)
    for word in (None, "auto"):
        order = resolved(asked(image=[first, scene()], size=word), model(*ALL), ranks)
        assert order.size.pixels <= POLICY.defaults.size.pixels
        assert abs(order.size.width - size[0]) + abs(order.size.height - size[1]) <= 32
        assert order.size.tokens(16) % ranks == 0
    assert resolved(asked(image=first, size="256x128"), model(*ALL)).size == Size(256, 128)


def test_a_small_default_is_no_limit_for_what_is_named():
    policy = POLICY.model_copy(update={"defaults": DefaultSettings(size=Size(128, 64))})
    large = np.zeros((512, 1024, 3), np.uint8)
    assert resolved(asked(image=large), model(*ALL), policy=policy).size == Size(128, 64)
    assert resolved(asked(image=large, size="1024x512"), model(*ALL), policy=policy).size == Size(1024, 512)


def test_a_request_is_pixels_wherever_it_goes(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(file(scene()))
    request = EditRequest(prompt="a secret", image=[path, file(scene())], mask=MASK, n=2)
    path.unlink()
    again = pickle.loads(pickle.dumps(request.model_copy(update={"timeout_s": 3.0})))
    inputs = resolved(again, model(*ALL)).inputs
    assert [(image == scene()).all() for image in inputs.images] == [True, True]
    assert inputs.mask.tolist() == MASK.tolist()
    assert "secret" not in repr(again)
    assert "array" not in repr(again)


def test_what_is_no_request():
    for wrong in ("a.png", scene()[:, :, 0], [scene(), "b.png"]):
        with pytest.raises(RequestError, match="image"):
            asked(image=wrong)
    with pytest.raises(RequestError, match="mask"):
        asked(mask="a.png")
    for strength in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValidationError, match="strength"):
            asked(strength=strength)
    with pytest.raises(ValidationError, match="image"):
        EditRequest(prompt="a")


def test_capabilities_of_today_have_no_edits():
    today = replace(model(), tasks=("text-to-image",), max_inputs=0)
    assert "does not support edit" in refused(asked(), today).message
