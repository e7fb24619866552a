"""One spelling for people, one type for code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from raycache.protocol.errors import from_validation_error
from raycache.size import Size


class Shape(BaseModel):
    size: Size


def test_what_it_says_is_what_it_reads():
    assert Size.parse("1024x512") == Size(1024, 512)
    assert str(Size.parse("0064x00032")) == "64x32"
    assert str(Size.of(np.zeros((32, 64, 3), np.uint8))) == "64x32"
    assert len({Size(64, 32), Size.parse("64x32"), Size(32, 64)}) == 2


@pytest.mark.parametrize(
    "text", ["", "64", "64X64", "64x", "-64x64", " 64x64", "64x64\n", "100000x1", "64x64x3", "64\u00d764"]
)
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValueError, match="is not WIDTHxHEIGHT in pixels"):
        Size.parse(text)


def test_pixels_and_tokens():
    assert Size(64, 32).pixels == 2048
    assert (Size(64, 32).tokens(16), Size(70, 47).tokens(16)) == (8, 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Size(64, 32).width = 1


def test_in_a_model_it_is_a_string_to_whoever_reads_or_writes():
    given = Shape.model_validate({"size": "0128x64"})
    assert given.size == Shape(size=Size(128, 64)).size == Size(128, 64)
    assert Shape.model_validate_json('{"size": "128x64"}') == given
    assert given.model_dump() == given.model_dump(mode="json") == {"size": "128x64"}
    assert TypeAdapter(Size).json_schema() == {"pattern": "^[0-9]{1,5}x[0-9]{1,5}$", "type": "string"}


@pytest.mark.parametrize("wrong", ["64", 64, None, [64, 32], {"width": 64, "height": 32}, Size(100_000, 1)])
def test_a_model_refuses_what_no_such_string_says(wrong: object):
    with pytest.raises(ValidationError) as caught:
        Shape.model_validate({"size": wrong})
    (error,) = caught.value.errors()
    assert error["loc"] == ("size",)
    assert error["type"] in ("string_pattern_mismatch", "string_type")
    assert from_validation_error(caught.value).message.startswith("size: ")
