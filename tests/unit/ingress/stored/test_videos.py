"""Videos over HTTP: made, told, listed, deleted; refused where they cannot be."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ray.exceptions import ActorDiedError

from raycache.ingress.api import build_http_app
from raycache.ingress.store_handle import StoreClient
from raycache.protocol.errors import RequestError
from tests.helpers.fake_service import FakeService, check_error
from tests.helpers.hostile import bodies, check, oddities
from tests.helpers.stored_app import BLUE, GREEN, IMAGE, LATER, VIDEO, Application, frames_of


def test_a_video_as_it_is_told(app: Application):
    app.hold()
    made = app.made()
    assert made.pop("id").startswith("video_")
    assert made.pop("created_at") > 1e6
    assert made == {
        "object": "video",
        "model": "wan",
        "status": "queued",
        "progress": 0,
        "completed_at": None,
        "expires_at": None,
        "error": None,
        "prompt": "a circle",
        "size": "64x48",
        "seconds": "0.3125",
        "num_frames": 5,
        "fps": 16.0,
        "seed": 7,
        "times": None,
        "warnings": [],
        "remixed_from_video_id": None,
    }


def test_a_video_that_is_done(app: Application):
    done = app.done()
    assert (done["progress"], done["warnings"], done["times"]["denoise"]) == (100, ["odd"], 2.0)
    assert done["expires_at"] - done["completed_at"] in (86_400, 86_399, 86_401)
    url = f"/v1/videos/{done['id']}/content"
    whole = app.http.get(url)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["content-length"] == str(len(whole.content))
    assert [frame.width for frame in frames_of(whole.content)] == [64] * 5
    thumbnail = app.http.get(url, params={"variant": "thumbnail"})
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (64, 48)
    head = app.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers} == {**whole.headers}


def test_deleting_ends_a_job(app: Application):
    app.hold()
    url = f"/v1/videos/{app.made()['id']}"
    app.once(url, lambda told: told["status"] == "in_progress")
    gone = app.http.delete(url)
    assert gone.json() == {"id": url.rpartition("/")[2], "object": "video.deleted", "deleted": True}
    assert app.asker.dropped == 1
    for response in (app.http.get(url), app.http.delete(url), app.http.get(f"{url}/content")):
        check_error(response, 404, "not_found", "id")


def test_lists(app: Application):
    app.hold()
    ids = [app.made(seed=seed)["id"] for seed in range(5)]
    page = app.http.get("/v1/videos").json()
    assert (page["object"], page["has_more"]) == ("list", False)
    assert [video["id"] for video in page["data"]] == ids[::-1]
    assert (page["first_id"], page["last_id"]) == (ids[4], ids[0])
    page = app.http.get("/v1/videos", params={"limit": 2, "order": "asc", "after": ids[1]}).json()
    assert [video["id"] for video in page["data"]] == ids[2:4]
    assert page["has_more"]
    assert app.http.get("/v1/jobs").json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *((f"limit={value}", "limit") for value in ("0", "101", "-1", "x", "1.5", "", "9" * 50, "%D9%A3")),
        *((f"order={value}", "order") for value in ("", "up")),
        *((f"after={value}", "after") for value in ("", "..%2F..", "x" * 500)),
    ],
)
def test_lists_that_cannot_be(app: Application, query: str, param: str):
    for path in ("videos", "jobs"):
        check_error(app.http.get(f"/v1/{path}?{query}"), 400, "invalid_value", param)


@pytest.mark.parametrize(
    "id", ["..", "%2e%2e", "..%2F..%2Fetc%2Fpasswd", "video_1", "%00", "video_" + "0" * 32, "a" * 5000]
)
def test_hostile_ids(app: Application, id: str):
    for path in ("videos", "jobs"):
        for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", ""), ("GET", "/content?index=../job.json")):
            response = app.http.request(method, f"/v1/{path}/{id}{tail}")
            assert response.status_code in (404, 405), response.text
            assert len(response.text) < 500


def test_a_key_sees_its_own_only(app: Application):
    id = app.done()["id"]
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        check_error(app.http.request(method, f"/v1/videos/{id}{tail}", headers=GREEN), 404, "not_found", "id")
    assert app.http.get("/v1/videos", headers=GREEN).json()["data"] == []
    for method, path in (("POST", "videos"), ("GET", "videos"), ("GET", f"videos/{id}"), ("GET", "jobs")):
        check_error(app.http.request(method, f"/v1/{path}", headers={"authorization": "Bearer no"}), 401)
    assert app.http.get(f"/v1/videos/{id}").status_code == 200


def test_refusals(app: Application):
    for fields, param in [
        ({"num_frames": 6}, "num_frames"),
        ({"seconds": "30"}, "seconds"),
        ({"size": "1x1"}, "size"),
        ({"n": 2}, "n"),
        ({"fps": 0}, "fps"),
        ({"second": 4}, "second"),
    ]:
        response = app.http.post("/v1/videos", json={"prompt": "a", **fields})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    app.hold()
    for _ in range(8):
        app.made()
    check_error(app.http.post("/v1/videos", json=VIDEO), 429, "too_many_stored")
    assert app.http.post("/v1/videos", json=VIDEO, headers=GREEN).status_code == 200


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_that_is_sent_is_our_failure(app: Application, data: st.DataObject):
    app.hold()
    document = app.http.get("/openapi.json").json()
    attack = data.draw(bodies(document) | oddities(document))
    path = data.draw(st.sampled_from(["/v1/videos", "/v1/videos/{id}", attack.path]))
    request = dataclasses.replace(attack, path=path)
    try:
        response = app.http.request(
            request.method, request.path, content=request.body, headers={**BLUE, **request.headers}
        )
    except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        return  # a client that cannot even say it
    check(request, response.status_code, response.headers.get("content-type", ""), response.text)


def test_a_priority_that_the_key_may_not_name(app: Application):
    response = app.http.post("/v1/videos", json={**VIDEO, "priority": "high"})
    check_error(response, 403, "priority_not_allowed", "priority")


def test_a_service_without_a_store_says_so():
    with TestClient(build_http_app(FakeService())) as http:
        for method, path in (("POST", "videos"), ("GET", "videos"), ("GET", "videos/x"), ("DELETE", "jobs/x")):
            error = check_error(http.request(method, f"/v1/{path}", json=VIDEO), 404, "no_store")
            assert "store.folder" in error["message"]
        check_error(http.post("/v1/images/generations", json=IMAGE, headers=LATER), 400, "no_store", "prefer")


@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError()])
async def test_a_store_that_is_being_replaced(error: Exception):
    def remote(*_: object) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
        return future

    client = StoreClient(SimpleNamespace(find=SimpleNamespace(remote=remote)))
    with pytest.raises(RequestError) as refused:
        await client.find("video", "video_1")
    assert (refused.value.status, refused.value.code) == (503, "store_gone")
    assert refused.value.retry_after_s


def test_a_video_that_no_engine_has_judged(app: Application):
    """All sleep, and none has ever said how many frames it makes a second."""
    app.http.portal.call(app.asker.awake.clear)
    told = app.made(num_frames=None, size=None, seconds="4")
    assert (told["status"], told["seconds"], told["num_frames"], told["fps"]) == ("queued", "4", None, None)
    assert (told["size"], told["seed"]) == (None, 7)
    later = app.http.post("/v1/images/generations", json={"prompt": "a"}, headers=LATER)
    assert (later.status_code, later.json()["size"]) == (202, None)
    app.http.portal.call(app.asker.awake.set)
    done = app.once(f"/v1/videos/{told['id']}", lambda told: told["status"] == "completed")
    assert (done["seconds"], done["num_frames"], done["size"]) == ("4.0625", 65, "64x48")
