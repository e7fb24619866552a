"""Edits as LiteLLM, Open WebUI, curl and JSON send them, and what no body can say."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from raycache.limits import LimitSettings
from tests.helpers.edits import IMAGE, MASK, OTHER, REDRAWN, URL, data_url, last, refused
from tests.helpers.image_files import apng, file, scene
from tests.helpers.openai_surface import MODEL, Service


def test_as_curl_writes_it(http: TestClient, service: Service):
    fields = {"prompt": "true", "n": "2", "cache": '{"type": "DBCache", "warmup_steps": 3}', "stream": "false"}
    answer = http.post(URL, data=fields, files=[("image", ("a.png", IMAGE)), ("mask", ("m.png", MASK))])
    assert answer.status_code == 200
    order = last(service)
    assert (order.prompt, order.n, order.cache.warmup_steps) == ("true", 2, 3)


@pytest.mark.parametrize(
    ("fields", "files"),
    [
        # LiteLLM: always `image[]`, the mask as a file, numbers and truths by httpx, null as nothing.
        (
            {"model": "org/flux", "prompt": "a hat", "n": 1, "size": "512x512", "user": "u", "quality": "high"},
            [("image[]", ("image.png", IMAGE, "image/png")), ("mask", ("mask.png", MASK, "image/png"))],
        ),
        (
            {"model": "org/flux", "prompt": "a hat", "stream": False, "background": None, "response_format": None},
            [("image[]", ("/tmp/a b.png", IMAGE, "image/png")), ("image[]", ("x.jpg", OTHER, "image/jpeg"))],
        ),
        # Open WebUI: one image as `image`, several as `image[]`; all fields as text.
        (
            {"model": "org/flux", "prompt": "a hat", "n": "1", "size": "512x512", "response_format": "b64_json"},
            [("image", ("image.png", IMAGE, "image/png"))],
        ),
        (
            {"model": "org/flux", "prompt": "a hat", "background": "opaque", "response_format": "b64_json"},
            [("image[]", ("image.png", IMAGE, "image/png")), ("image[]", ("image.png", OTHER, "image/png"))],
        ),
        # Others count them.
        ({"prompt": "a hat"}, [("image[0]", ("a.png", IMAGE)), ("image[1]", ("b.png", OTHER))]),
    ],
    ids=["litellm", "litellm, two", "open webui", "open webui, two", "counted"],
)
def test_others_ways_of_asking(http: TestClient, service: Service, fields: dict, files: list):
    answer = http.post(URL, data=fields, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == []
    assert answer.json()["data"][0]["b64_json"]
    images = last(service).inputs.images
    assert len(images) == sum(name.startswith("image") for name, _ in files)
    assert (images[0] == scene()).all()


@pytest.mark.parametrize(
    "given",
    [
        {"image": data_url(IMAGE)},
        {"image": base64.b64encode(IMAGE).decode()},
        {"image": base64.encodebytes(IMAGE).decode()},
        {"image": data_url(IMAGE).replace("data:image/png", "DATA:application/octet-stream;name=a")},
        {"image": [data_url(IMAGE)]},
        {"image": {"image_url": data_url(IMAGE)}},
        {"images": [{"image_url": data_url(IMAGE)}]},
        {"images": [data_url(IMAGE)], "image": None},
    ],
)
def test_images_in_json(http: TestClient, service: Service, given: dict):
    assert http.post(URL, json={"prompt": "a hat", **given}).status_code == 200
    assert (last(service).inputs.images[0] == scene()).all()


def test_masks_and_several_images_in_json(http: TestClient, service: Service):
    for mask in (data_url(MASK), {"image_url": data_url(MASK)}):
        ask = {"prompt": "a hat", "images": [{"image_url": data_url(IMAGE)}, data_url(OTHER)], "mask": mask}
        assert http.post(URL, json={**ask, "seed": 5}).json()["seeds"] == [5]
        assert len(last(service).inputs.images) == 2
        assert last(service).inputs.mask.tolist() == REDRAWN.tolist()


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ({}, "image", "needs an image"),
        ({"image": []}, "image", "needs an image"),
        ({"image": "https://example.com/a.png"}, "image", "does not download"),
        ({"image": "file:///etc/passwd"}, "image", "does not download"),
        ({"image": "data:image/png,abc"}, "image", "data URL must be"),
        ({"image": "data:image/png;base64"}, "image", "data URL must be"),
        ({"image": "???"}, "image", "not base64"),
        ({"image": "abc"}, "image", "not base64"),
        ({"image": 3}, "image", "must be text"),
        ({"image": [data_url(IMAGE), None]}, "image[1]", "must be text"),
        ({"image": [data_url(IMAGE), "eA=="]}, "image[1]", "not a supported image"),
        ({"images": [{"file_id": "file-1"}]}, "images[0].file_id", "stores no files"),
        ({"images": [{"url": "x"}]}, "images[0].url", "unknown field"),
        ({"images": [{}]}, "images[0].image_url", "must be text"),
        ({"images": [{"image_url": {"url": "x"}}]}, "images[0].image_url", "must be text"),
        ({"images": [data_url(IMAGE)], "image": data_url(IMAGE)}, "images", "one of them"),
        ({"image": data_url(IMAGE), "mask": {"file_id": "x"}}, "mask.file_id", "stores no files"),
        ({"image": data_url(IMAGE), "mask": "http://x.y/z"}, "mask", "does not download"),
        ({"image": data_url(IMAGE), "strength": 0}, "strength", "greater than 0"),
        ({"image": data_url(IMAGE), "strength": 1.5}, "strength", "less than or equal to 1"),
        ({"image": data_url(IMAGE), "nonsense": 1}, "nonsense", "unknown field"),
    ],
)
def test_what_json_cannot_say(http: TestClient, given: dict, param: str, says: str):
    assert says in refused(http.post(URL, json={"prompt": "a hat", **given}), param)


@pytest.mark.parametrize(
    ("fields", "files", "param", "says"),
    [
        ({"prompt": "a"}, [("mask", ("m", MASK))], "image", "needs an image"),
        ({}, [("image", ("a", IMAGE))], "prompt", "missing"),
        ({"prompt": ""}, [("image", ("a", IMAGE))], "prompt", "missing"),
        ({"prompt": "a", "n": "two"}, [("image", ("a", IMAGE))], "n", "valid integer"),
        ({"prompt": "a", "n": "1e999"}, [("image", ("a", IMAGE))], "n", "integer"),
        ({"prompt": "a", "cache": "{"}, [("image", ("a", IMAGE))], "cache", "object"),
        ({"prompt": ["a", "b"]}, [("image", ("a", IMAGE))], "prompt", "given twice"),
        ({"prompt": "a", "cache": "x", "cache[type]": "y"}, [("image", ("a", IMAGE))], "cache", "two ways"),
        ({"prompt": "a", "nonsense": "1"}, [("image", ("a", IMAGE))], "nonsense", "unknown field"),
        ({"prompt": "a", "x]y": "1"}, [("image", ("a", IMAGE))], "x]y", "not a field name"),
        ({"prompt": "a"}, [("image", ("a", IMAGE)), ("picture", ("b", OTHER))], "picture", "unknown field"),
        ({"prompt": "a"}, [("image", ("a", IMAGE)), ("n", ("b", b"1"))], "n", "integer"),
        ({"prompt": "a"}, [("image", ("a", IMAGE)), ("mask", ("b", MASK)), ("mask", ("c", MASK))], "mask", "twice"),
        ({"prompt": "a", "image": data_url(OTHER)}, [("image", ("a", IMAGE))], "image", "both as a file and as text"),
        ({"prompt": "a"}, [("image", ("a", b""))], "image", "empty"),
        (
            {"prompt": "a"},
            [("image[]", ("a", IMAGE)), ("image[]", ("b", b"hello"))],
            "image[1]",
            "not a supported image",
        ),
        ({"prompt": "a"}, [("image", ("a", apng()))], "image", "animated"),
        ({"prompt": "a"}, [("image", ("a", file(Image.new("RGB", (4, 4)), "GIF")))], "image", "gif"),
        ({"prompt": "a"}, [("image", ("a", OTHER)), ("mask", ("m", MASK))], "mask", "24x16"),
        ({"prompt": "a"}, [("image", ("a", IMAGE)), ("mask", ("m", IMAGE[:60]))], "mask", "broken"),
        ({"prompt": "a"}, [("image", ("a", IMAGE))] * 5, "image", "at most 4"),
        ({"prompt": "a"}, [("image", ("a", IMAGE))] * 18, None, "Maximum number of files is 17"),
        ({f"x{k}": "1" for k in range(200)}, [("image", ("a", IMAGE))], None, "Too many fields"),
        ({"prompt": "a" * (2 << 20)}, [("image", ("a", IMAGE))], None, "exceeded maximum size"),
    ],
)
def test_what_a_form_cannot_say(http: TestClient, fields: dict, files: list, param: str | None, says: str):
    assert says in refused(http.post(URL, data=fields, files=files), param)


def test_a_form_may_have_a_text_in_place_of_a_file(http: TestClient, service: Service):
    fields = {"prompt": "a", "image": data_url(IMAGE), "mask": data_url(MASK)}
    # `files` makes a form of parts of it.
    assert http.post(URL, data=fields, files={"user": (None, "me")}).status_code == 200
    assert last(service).inputs.mask.tolist() == REDRAWN.tolist()


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\ncontent-disposition: form-data; " + part + b"\r\n" for part in parts) + end


WHOLE = form(b'name="prompt"\r\n\r\na', b'name="image"; filename="a"\r\n\r\n' + IMAGE)


@pytest.mark.parametrize(
    ("kind", "body", "status", "says"),
    [
        ("multipart/form-data; boundary=B", WHOLE, 200, ""),
        ('multipart/form-data; charset=UTF-8; boundary="B"', WHOLE, 200, ""),
        ("multipart/form-data; boundary=B; charset=punycode", WHOLE, 400, "utf-8"),
        ("multipart/form-data", WHOLE, 400, "boundary"),
        ("multipart/form-data; boundary=", WHOLE, 400, "cannot be read"),
        ("multipart/form-data; boundary=C", WHOLE, 400, "cannot be read"),
        ("multipart/form-data; boundary=" + "B" * 300, WHOLE, 400, "cannot be read"),
        ("multipart/form-data; boundary=B", WHOLE[:-8], 400, "last boundary"),
        ("multipart/form-data; boundary=B", b"", 400, "last boundary"),
        ("multipart/form-data; boundary=B", form(b"\r\n\r\na"), 400, '"name"'),
        (
            "multipart/form-data; boundary=B",
            form(b'name="a"\r\nx: ' + b"y" * 9000 + b"\r\n\r\n"),
            400,
            "cannot be read",
        ),
        ("multipart/form-data; boundary=B", form(b'name="a"\r\n' + b"x: y\r\n" * 90 + b"\r\n"), 400, "be read"),
        ("multipart/mixed; boundary=B", WHOLE, 415, "multipart/form-data"),
        ("application/x-www-form-urlencoded", b"prompt=a", 415, "multipart/form-data"),
        ("", WHOLE, 415, "multipart/form-data"),
        ("application/json", b"[]", 400, "object"),
        ("application/json", b"{", 400, "JSON"),
    ],
)
def test_bodies_that_are_odd(http: TestClient, kind: str, body: bytes, status: int, says: str):
    answer = http.post(URL, content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert says in (answer.text if status == 200 else answer.json()["error"]["message"])


def test_bounds_are_the_settings_own(http: TestClient, service: Service):
    service.limits = LimitSettings(max_upload_bytes=2000, max_input_bytes=len(IMAGE), max_input_pixels=24 * 16)
    assert http.post(URL, data={"prompt": "a"}, files={"image": IMAGE}).status_code == 200
    assert refused(http.post(URL, data={"prompt": "a" * 2000}, files={"image": IMAGE}), None, 413)
    assert refused(http.post(URL, json={"prompt": "a" * 2000}), None, 413)
    assert "bytes" in refused(http.post(URL, data={"prompt": "a"}, files={"image": IMAGE + b"x"}), "image")
    larger = file(np.zeros((16, 25, 3), np.uint8))
    assert len(larger) <= len(IMAGE)
    assert "25x16 is 400 pixels" in refused(http.post(URL, data={"prompt": "a"}, files={"image": larger}), "image")
    assert "400 pixels" in refused(http.post(URL, data={"prompt": "a"}, files={"image": IMAGE, "mask": larger}), "mask")


def test_what_the_model_cannot_do_is_refused_before_anything_is_decoded(http: TestClient, service: Service):
    service.model = MODEL
    message = refused(http.post(URL, data={"prompt": "a"}, files={"image": b"not a supported image"}), "image")
    assert "does not support edit; it supports: text-to-image" in message
    message = refused(http.post(URL, data={"prompt": "a"}, files={"image": b"", "mask": b""}), "mask")
    assert "does not support inpaint" in message


def test_a_key_is_asked_for_first(http: TestClient, service: Service):
    service.keys = (b"alpha",)
    refused(http.post(URL, content=b"x", headers={"content-type": "text/plain"}), None, 401)


def test_raw_bytes_are_answered_where_they_are_asked_for(http: TestClient):
    answer = http.post(URL, data={"prompt": "a"}, files={"image": IMAGE}, headers={"accept": "image/png"})
    assert answer.content[:4] == b"\x89PNG"
    assert "is for one image" in refused(
        http.post(URL, data={"prompt": "a", "n": "2"}, files={"image": IMAGE}, headers={"accept": "image/png"}),
        "n",
    )


def test_the_document_has_both_ways(http: TestClient):
    document = http.get("/openapi.json").json()
    content = document["paths"][URL]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"]["properties"]["mask"]["anyOf"]
    parts = content["multipart/form-data"]["schema"]["properties"]
    assert parts["mask"]["format"] == parts["image"]["items"]["format"] == "binary"
    assert "images" not in parts
    assert "$defs" not in json.dumps(document)
