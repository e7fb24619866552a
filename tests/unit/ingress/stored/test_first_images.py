"""What a body brings for a video to begin with, and says besides."""

from __future__ import annotations

import pytest

from tests.helpers.fake_service import check_error
from tests.helpers.stored_app import PNG, URL, VIDEO, Application


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("https://example.org/a.png", "does not download"),
        ("data:image/png;base64,AAAA", "not a supported image"),
        ({"file_id": "file_1"}, "stores no files"),
        ({"image_url": 5}, "must be text"),
        ([URL], "must be text"),
        ("", "empty"),
        (URL[:-400], "broken"),
    ],
)
def test_images_that_cannot_be(app: Application, reference: object, words: str):
    response = app.http.post("/v1/videos", json={**VIDEO, "input_reference": reference})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["param"].startswith("input_reference")


def test_forms_that_cannot_be(app: Application):
    fields = {key: str(value) for key, value in VIDEO.items()}
    for files, param in [
        ([("input_reference", PNG), ("input_reference", PNG)], None),
        ([("image", PNG)], "image"),
        ([("prompt", PNG)], "prompt"),
    ]:
        response = app.http.post("/v1/videos", data=fields, files=files)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    response = app.http.post("/v1/videos", data={**fields, "input_reference": URL}, files=[("input_reference", PNG)])
    check_error(response, 400, "invalid_value", "input_reference")
    check_error(app.http.post("/v1/videos", data={"prompt": "a"}), 415, "unsupported_media")


def test_what_has_no_effect_is_said(app: Application):
    made = app.made(output_format="webp", partial_images=2)
    assert made["warnings"] == [
        "`output_format` has no effect on a video",
        "`partial_images` has no effect on a video",
    ]
