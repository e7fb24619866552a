"""Bytes that Pillow reads back; keys that are compared, not guessed."""

import io

import numpy as np
import pytest
from PIL import Image

from raycache.ingress.auth import check_key, read_keys
from raycache.protocol.errors import RequestError
from raycache.protocol.formats import encode

PIXELS = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(format):
    image = Image.open(io.BytesIO(encode(PIXELS, format, 90)))
    assert (image.format, image.size) == (format.upper(), (48, 32))


def test_png_is_lossless_whatever_the_quality():
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(PIXELS, "png", 0)))), PIXELS)


def test_quality_costs_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert len(encode(noise, "jpeg", 10)) < len(encode(noise, "jpeg", 95))


def test_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# team\nalpha\n\n beta \n")
    keys = read_keys(file)
    assert keys == (b"alpha", b"beta")
    check_key(keys, "Bearer beta")
    check_key((), None)
    for header in (None, "", "Bearer", "Bearer gamma", "Basic alpha", "alpha", "Bearer älpha"):
        with pytest.raises(RequestError) as caught:
            check_key(keys, header)
        assert caught.value.status == 401
        assert "alpha" not in caught.value.message


def test_an_empty_key_file_does_not_open_the_service(tmp_path):
    file = tmp_path / "keys"
    file.write_text("\n# none\n")
    with pytest.raises(ValueError, match="has no key"):
        read_keys(file)
