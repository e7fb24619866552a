"""Images that nobody waits for, over HTTP."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from raycache.protocol.formats import encode
from tests.helpers.fake_service import check_error
from tests.helpers.stored import EDITS
from tests.helpers.stored_app import IMAGE, LATER, PIXELS, PNG, Application


def test_images_for_later(app: Application):
    response = app.http.post("/v1/images/generations", json={**IMAGE, "background": "transparent"}, headers=LATER)
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
    url = response.headers["location"]
    assert url == f"/v1/jobs/{response.json()['id']}"
    assert not app.service.requests, "nobody waits for the engine"
    done = app.once(url, lambda told: told["status"] == "completed")
    assert (done["object"], done["size"], done["images"], done["seed"]) == ("job", "64x48", 2, 3)
    assert done["warnings"] == ["`background` has no effect on this server", "odd"]
    reply = app.http.get(f"{url}/content").json()
    assert (reply["seeds"], reply["size"], reply["output_format"]) == ([3, 4], "64x48", "png")
    direct = app.http.post("/v1/images/generations", json=IMAGE).json()
    assert set(reply) == set(direct), "as a client who waits would get it"
    for index, image in enumerate(reply["data"]):
        data = base64.b64decode(image["b64_json"])
        raw = app.http.get(f"{url}/content", params={"index": index})
        assert (raw.headers["content-type"], raw.content) == ("image/png", data)
        assert app.http.get(f"{url}/content?index={index}", headers={"range": "bytes=1-3"}).content == b"PNG"
    for index in ("2", "-1", "x", "job.json"):
        check_error(app.http.get(f"{url}/content", params={"index": index}), 404, "not_found")
    assert app.http.delete(url).json()["object"] == "job.deleted"
    check_error(app.http.get(url), 404, "not_found", "id")


@pytest.mark.parametrize(
    ("prefer", "later"),
    [
        *(("respond-async, wait=10", True), ("wait=10,Respond-Async", True), ("respond-async;x=1", True)),
        *(("", False), ("return=minimal", False), ("respond-async-not", False)),
    ],
)
def test_what_is_preferred(app: Application, prefer: str, later: bool):
    response = app.http.post("/v1/images/generations", json=IMAGE, headers={"prefer": prefer})
    assert response.status_code == (202 if later else 200)


def test_a_stream_is_for_now(app: Application):
    response = app.http.post("/v1/images/generations", json={**IMAGE, "stream": True}, headers=LATER)
    check_error(response, 400, "invalid_value", "stream")


def test_a_video_is_no_image_job(app: Application):
    check_error(app.http.get(f"/v1/jobs/{app.made()['id']}"), 404, "not_found", "id")


def test_an_edit_for_later(app: Application):
    app.asker.model = EDITS
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20] = 255
    files = [("image[]", PNG), ("image[]", encode(PIXELS[::-1].copy(), "png")), ("mask", encode(mask, "png"))]
    response = app.http.post("/v1/images/edits", data={"prompt": "a", "size": "64x48"}, files=files, headers=LATER)
    assert response.status_code == 202, response.text
    app.once(response.headers["location"], lambda told: told["status"] == "completed")
    (asked,) = app.asker.asked
    inputs = asked.inputs()
    assert inputs.task == "inpaint"
    for kept, sent in zip(inputs.images, (PIXELS, PIXELS[::-1]), strict=True):
        np.testing.assert_array_equal(kept, sent)
    np.testing.assert_array_equal(inputs.mask, mask)
