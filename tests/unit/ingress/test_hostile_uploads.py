"""Hostile files and forms: an image, or a 400 that says why; never a failure of ours, and memory stays as it is.

100 files and 100 forms, the same each time. `HOSTILE=10 pytest tests/unit/ingress/test_hostile_uploads.py` tries 1,000
of each, others each time; what it finds becomes a case of its own.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from raycache.ingress.api import build_http_app
from raycache.limits import LimitSettings
from raycache.protocol.errors import RequestError
from raycache.protocol.input_images import open_image
from tests.helpers.hostile import Hostile, check
from tests.helpers.image_files import apng, file, jpeg_of_size, scene, webp_of_size, with_checksums
from tests.helpers.openai_surface import MODEL, Service

#: How many times the usual number of them, drawn by chance; 0: the usual ones.
MORE = int(os.environ.get("HOSTILE", "0"))
PIXELS = 1 << 16
URL = "/v1/images/edits"
#: Resident bytes that a process may grow by while it tries them.
GROWTH = 64 << 20


def seeds() -> list[bytes]:
    """Good files of every kind that is read, and some that are not."""
    noise = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    image, clear = Image.fromarray(scene()), Image.fromarray(np.dstack([scene(), scene()[:, :, 0]]))
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = {"exif": exif, "icc_profile": b"profile" * 20}
    modes = [file(image.convert(mode)) for mode in ("L", "1", "LA", "P", "I;16")] + [file(clear), file(image, **kept)]
    jpegs = [file(noise, "JPEG", quality=q, progressive=p) for q, p in ((50, False), (95, True))]
    jpegs += [file(image.convert("CMYK"), "JPEG", **kept), file(image.convert("L"), "JPEG")]
    webps = [file(clear, "WEBP", lossless=True), file(noise, "WEBP"), file(image, "WEBP", **kept)]
    return [*modes, *jpegs, *webps, apng(), jpeg_of_size(60_000, 60_000), webp_of_size(9000, 9000), file(image, "GIF")]


SEEDS = seeds()
_BYTES = st.binary(max_size=12) | st.sampled_from(
    [b"\xff\xda", b"\xff\xd9", b"\xff\xc2", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"eXIf", b"VP8X", b"ANMF", b"\xff" * 4]
)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of ``whole``, up to four times overwritten, cut out, repeated, inserted or cut off."""
    data = draw(whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from(["overwrite", "flip", "cut", "repeat", "insert", "end"]))
        if kind == "overwrite":
            new = draw(_BYTES)
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + length :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + length] * draw(st.integers(1, 50)) + data[at:]
        elif kind == "insert":
            data = data[:at] + draw(_BYTES) + data[at:]
        elif kind == "end":
            data = data[:at]
    return data


def many(count: int) -> Callable:
    return settings(
        max_examples=count * max(MORE, 1),
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def _flat() -> Iterator[None]:
    """Memory of this process, Pillow's too, is what it was."""
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    yield
    gc.collect()
    grown = process.memory_info().rss - before
    assert grown < GROWTH, f"{grown >> 20} MiB more than before"


def _tried(data: bytes, as_mask: bool) -> np.ndarray | RequestError:
    try:
        opened = open_image(data, "image", max_bytes=1 << 20, max_pixels=PIXELS)
        return opened.decoded_mask() if as_mask else opened.decoded()
    except RequestError as error:
        return error


@pytest.mark.slow
@pytest.mark.usefixtures("_flat")
def test_files():
    outcomes: Counter[str] = Counter()

    @many(100)
    @given(mutated(st.sampled_from(SEEDS)), st.booleans(), st.booleans())
    def attack(data: bytes, as_mask: bool, summed: bool) -> None:
        made = _tried(with_checksums(data) if summed else data, as_mask)
        if isinstance(made, RequestError):
            assert (made.status, made.param) == (400, "image")
            assert 0 < len(made.message) < 400
            made.message.encode()
            outcomes["refused"] += 1
            return
        assert made.dtype == np.uint8
        assert made.shape[2:] == (() if as_mask else (3,))
        assert 0 < made.shape[0] * made.shape[1] <= PIXELS
        assert made.flags.c_contiguous
        assert not as_mask or set(np.unique(made)) <= {0, 255}
        outcomes["read"] += 1

    with warnings.catch_warnings(action="ignore"):  # Pillow's words on what it reads nevertheless
        attack()
    assert outcomes["read"] > 10, outcomes
    assert outcomes["refused"] > 20, outcomes


_FIELD = st.sampled_from(
    [b"prompt", b"n", b"size", b"cache[type]", b"cache", b"image", b"image[]", b"mask", b"stream", b"x[", b""]
)
_VALUE = st.sampled_from(
    [b"a", b"", b"2", b"1e999", b"NaN", b"true", b'{"type": "none"}', b"[" * 3000, b"\xff", b"9" * 5000]
)
_HEADER = st.sampled_from(
    [b"", b"content-type: image/png\r\n", b"content-transfer-encoding: base64\r\n", b"x" * 200, b":\r\n"]
)
_REST = st.sampled_from([b"", b'; filename="b"', b"; filename=", b";"])


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, bytes]:
    """A content type and a body that fits it, more or less."""
    parts = [b'name="prompt"\r\n\r\na circle', b'name="image"; filename="a"\r\n\r\n' + SEEDS[6]]
    for _ in range(draw(st.integers(0, 2))):  # few, or all would be refused for the first of them
        disposition = (
            b'name="' + draw(_FIELD) + b'"' + draw(st.sampled_from([b"", b'; filename="b"', b"; filename=", b";"]))
        )
        value = draw(_VALUE | mutated(st.sampled_from(SEEDS)))
        parts.append(disposition + b"\r\n" + draw(_HEADER) + b"\r\n" + value)
    draw(st.randoms()).shuffle(parts)
    body = b"".join(b"--B\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts) + b"--B--\r\n"
    kinds = ["multipart/form-data; boundary=B"] * 30 + [
        "multipart/form-data",
        "multipart/form-data; boundary=\xff",
        "x",
    ]
    kinds += ["multipart/form-data; boundary=B; charset=utf-16", "application/json", 'multipart/form-data; boundary="B']
    return draw(st.sampled_from(kinds)), draw(st.just(body) | mutated(st.just(body)))


@pytest.mark.slow
@pytest.mark.usefixtures("_flat")
def test_forms():
    service = Service()
    service.model = replace(MODEL, tasks=("text-to-image", "edit", "inpaint"), max_inputs=4)
    service.limits = LimitSettings(max_upload_bytes=100_000, max_input_pixels=PIXELS)
    statuses: Counter[int] = Counter()
    with TestClient(build_http_app(service), raise_server_exceptions=False) as http:

        @many(100)
        @given(forms())
        def attack(form: tuple[str, bytes]) -> None:
            kind, body = form
            answer = http.post(URL, content=body, headers={b"content-type": kind.encode("latin-1")})
            check(Hostile("POST", URL, body), answer.status_code, answer.headers.get("content-type", ""), answer.text)
            statuses[answer.status_code] += 1
            service.orders.clear()

        with warnings.catch_warnings(action="ignore"):
            attack()
        good = http.post(URL, data={"prompt": "a"}, files={"image": SEEDS[0]})
        assert good.status_code == 200, "still well"
    assert statuses[200] > 5, statuses
    assert statuses[400] > 20, statuses
    room = http.app.state.context.images
    service.orders.clear()
    gc.collect()
    assert room.held == 0
    assert room._body_bytes == 0
