"""How long a video is: what was asked, brought to what the model makes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.resolve import resolve
from raycache.protocol.videos import VideoRequest
from tests.helpers.stored import SETTINGS, VIDEOS

IMAGES = Capabilities("noise", 57, 4, 64, "FluxPipeline", 16)


def resolved(model: Capabilities = VIDEOS, **fields: object):
    return resolve(VideoRequest(prompt="a", **fields), SETTINGS.policy, model, model_name="wan", ranks=2)


@pytest.mark.parametrize(
    ("fields", "frames", "fps"),
    [
        ({}, 65, 16),
        ({"seconds": "4"}, 65, 16),
        ({"seconds": 1}, 17, 16),
        ({"seconds": 1, "fps": 24}, 25, 24),
        ({"seconds": 0.01}, 1, 16),
        ({"num_frames": 33}, 33, 16),
        ({"num_frames": 33, "fps": 8}, 33, 8),
        ({"fps": 30}, 81, 30),  # 4 s would be more than may be
    ],
)
def test_length(fields, frames, fps):
    order = resolved(**fields)
    assert (order.inputs.num_frames, order.fps, order.inputs.task) == (frames, fps, "text-to-video")


@settings(deadline=None)
@given(seconds=st.floats(0.01, 5), fps=st.floats(1, 60))
def test_the_nearest_length_that_the_model_makes(seconds, fps):
    if round(seconds * fps) > 81:
        with pytest.raises(RequestError) as refused:
            resolved(seconds=seconds, fps=fps)
        assert refused.value.param == "seconds"
        nearest = float(refused.value.message.rpartition(" ")[2])
        assert resolved(seconds=nearest, fps=fps).inputs.num_frames in (77, 81)
        return
    frames = resolved(seconds=seconds, fps=fps).inputs.num_frames
    legal = range(1, 82, 4)
    assert frames in legal
    assert abs(frames - round(seconds * fps)) == min(abs(each - round(seconds * fps)) for each in legal)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seconds": 8}, "seconds"),
        ({"seconds": 2, "num_frames": 33}, "seconds"),
        ({"num_frames": 32}, "num_frames"),
        ({"num_frames": 85}, "num_frames"),
        ({"size": "63x48"}, "size"),
    ],
)
def test_what_the_model_cannot_make(fields, param):
    with pytest.raises(RequestError) as refused:
        resolved(**fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_model_of_images_says_what_it_has():
    with pytest.raises(RequestError, match="does not support text-to-video; it supports: text-to-image") as refused:
        resolved(IMAGES, seconds=4)
    assert refused.value.code == "unsupported_task"


@pytest.mark.parametrize(
    "fields",
    [
        *({"seconds": value} for value in ("long", "", "nan", "inf", 0, -1, [], "1e9")),
        *({"fps": value} for value in (0, 121, float("nan"))),
        *({"num_frames": value} for value in (0, 1.5)),
        {"n": 2},
    ],
)
def test_nonsense(fields):
    with pytest.raises(ValidationError):
        VideoRequest(prompt="a", **fields)
