"""Videos and kept images over HTTP, by OpenAI's own client where it has words for them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ray.exceptions import ActorDiedError

import raycache.store.store
from raycache.ingress.api import build_http_app
from raycache.ingress.auth import Key
from raycache.ingress.contents import byte_range
from raycache.ingress.store_handle import StoreClient
from raycache.protocol.errors import RequestError
from raycache.protocol.formats import encode
from raycache.store.store import Store
from tests.helpers.fake_service import FakeService, check_error
from tests.helpers.hostile import bodies, check, oddities
from tests.helpers.stored import EDITS, SETTINGS, FakeAsker, handle_of, settings_of, stopped, until

BLUE, GREEN = ({"authorization": f"Bearer {name}"} for name in ("blue-key", "green-key"))
VIDEO = {"prompt": "a circle", "size": "64x48", "num_frames": 5, "seed": 7}
IMAGE = {"prompt": "a circle", "size": "64x48", "n": 2, "seed": 3}
LATER = {"prefer": "respond-async"}


class Application:
    """The HTTP application over a store whose engine is ``asker``, asked with the key of blue."""

    def __init__(self, http: TestClient, asker: FakeAsker, service: FakeService) -> None:
        self.http, self.asker, self.service = http, asker, service

    def hold(self) -> None:
        """Jobs stay under way from now on."""
        self.http.portal.call(self.asker.go.clear)

    def made(self, **fields: Any) -> dict[str, Any]:
        response = self.http.post("/v1/videos", json={**VIDEO, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def once(self, url: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What ``url`` tells as soon as it holds."""
        for _ in range(2000):
            if holds(told := self.http.get(url).json()):
                return told
            self.http.portal.call(asyncio.sleep, 0.005)
        raise AssertionError(f"{url} never came so far")

    def done(self, **fields: Any) -> dict[str, Any]:
        return self.once(f"/v1/videos/{self.made(**fields)['id']}", lambda told: told["status"] == "completed")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    service, handle = FakeService(), SimpleNamespace()
    service.keys = (Key(b"blue-key", "blue"), Key(b"green-key", "green"))
    service.max_body_bytes = 20_000
    configured = SETTINGS.model_copy(update={"store": settings_of(tmp_path / "jobs", max_jobs_per_key=8)})

    async def begin() -> tuple[Store, FakeAsker]:
        asker = FakeAsker()
        monkeypatch.setattr(raycache.store.store, "EnginePools", lambda *_: asker)
        store = Store(configured, {}, {})
        vars(handle).update(vars(handle_of(store)))
        await until(lambda: store._store._ours)
        return store, asker

    with TestClient(build_http_app(service, store=StoreClient(handle)), headers=BLUE) as http:
        store, asker = http.portal.call(begin)
        yield Application(http, asker, service)
        http.portal.call(stopped, store._store)


def frames_of(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


# Videos.


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


def test_a_part_of_a_file(app: Application):
    url = f"/v1/videos/{app.done()['id']}/content"
    whole = app.http.get(url)
    data, size = whole.content, len(whole.content)
    for asked, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=10-{size * 2}", 10, size),
        (f"bytes=-{size * 2}", 0, size),
    ]:
        part = app.http.get(url, headers={"range": asked})
        assert (part.status_code, part.content) == (206, data[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["content-length"] == str(end - start)
    for odd in ("bytes=", "bytes=-", "lines=0-1", "bytes=5-2", "bytes=0-1,4-5", "bytes=a-b", "bytes=" + "9" * 30 + "-"):
        assert app.http.get(url, headers={"range": odd}).content == data
    assert app.http.get(url, headers={"range": "bytes=0-1", "if-range": '"other"'}).status_code == 200
    assert app.http.get(url, headers={"range": "bytes=0-1", "if-range": whole.headers["etag"]}).status_code == 206
    for behind in (f"bytes={size}-", "bytes=-0"):
        check_error(app.http.get(url, headers={"range": behind}), 416, "invalid_range", "range")
    # A download goes on where it broke off.
    assert (
        app.http.get(url, headers={"range": f"bytes=0-{size // 2}"}).content
        + app.http.get(url, headers={"range": f"bytes={size // 2 + 1}-"}).content
        == data
    )


def test_files_larger_than_a_chunk(app: Application, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("raycache.ingress.contents._CHUNK", 100)
    url = f"/v1/videos/{app.done()['id']}/content"
    whole = app.http.get(url).content
    assert len(whole) > 1000
    assert len(frames_of(whole)) == 5
    assert app.http.get(url, headers={"range": "bytes=50-350"}).content == whole[50:351]


@pytest.mark.parametrize("size", [1, 10])
def test_a_range_is_never_longer_than_its_file(size: int):
    for first in ["", *map(str, range(12))]:
        for last in ["", *map(str, range(12))]:
            with contextlib.suppress(RequestError):  # behind the end
                if part := byte_range(f"bytes={first}-{last}", size):
                    assert 0 <= part[0] < part[1] <= size


def test_what_is_not_done_has_no_content(app: Application):
    app.hold()
    url = f"/v1/videos/{app.made()['id']}"
    check_error(app.http.get(f"{url}/content"), 409, "not_completed")
    assert "report" not in app.http.get(url).json()
    app.asker.answers = [RequestError(500, "drawing failed", None, "job_failed")]
    app.http.portal.call(app.asker.go.set)
    failed = app.once(f"/v1/videos/{app.made()['id']}", lambda told: told["status"] == "failed")
    assert failed["error"]["code"] == "job_failed"
    error = check_error(app.http.get(f"/v1/videos/{failed['id']}/content"), 409, "not_completed")
    assert "drawing failed" in error["message"]


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


def test_a_result_is_asked_for_by_its_name_only(app: Application):
    url = f"/v1/videos/{app.done()['id']}/content"
    for variant in ("job.json", "../job.json", "spritesheet", ""):
        check_error(app.http.get(url, params={"variant": variant}), 400, "invalid_value", "variant")


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


# Images that nobody waits for.


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


# OpenAI's client.


@pytest.fixture
def client(app: Application) -> openai.OpenAI:
    """The client, which sends no header of its own that its transport has."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key="blue-key", max_retries=0, http_client=app.http)


PICTURE = np.random.default_rng(5).integers(0, 255, (48, 64, 3), np.uint8)
PNG = encode(PICTURE, "png")
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


@pytest.mark.filterwarnings("ignore:The Sora API")
class TestOpenAisClient:
    """It sends forms, whatever it is told."""

    def test_from_create_to_delete(self, client: openai.OpenAI, app: Application, tmp_path: Path):
        video = client.videos.create_and_poll(
            prompt="a circle",
            model="wan",
            seconds="4",
            size="64x48",
            poll_interval_ms=20,
            extra_body={"seed": 7, "num_inference_steps": 3, "cache": {"type": "FBCache", "warmup_steps": 2}},
        )
        assert (video.status, video.progress, video.size, video.error) == ("completed", 100, "64x48", None)
        assert (video.model_extra["num_frames"], float(video.seconds)) == (65, 65 / 16)
        (asked,) = app.asker.asked
        assert (asked.seed, asked.num_inference_steps, asked.cache.type) == (7, 3, "FBCache")
        assert asked.cache.warmup_steps == 2
        client.videos.download_content(video.id).write_to_file(tmp_path / "video.mp4")
        assert len(frames_of((tmp_path / "video.mp4").read_bytes())) == 65
        thumbnail = client.videos.download_content(video.id, variant="thumbnail").read()
        assert Image.open(io.BytesIO(thumbnail)).format == "WEBP"
        assert client.videos.retrieve(video.id).status == "completed"
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video.id)

    def test_lists_page_by_page(self, client: openai.OpenAI, app: Application):
        app.hold()
        ids = [app.made(seed=seed)["id"] for seed in range(5)]
        assert [video.id for video in client.videos.list(limit=2)] == ids[::-1]
        assert [video.id for video in client.videos.list(limit=3, order="asc", after=ids[0])] == ids[1:]

    def test_a_failure_is_told_not_raised(self, client: openai.OpenAI, app: Application):
        app.asker.answers = [RequestError(500, "drawing failed", None, "job_failed")]
        video = client.videos.create_and_poll(prompt="a", size="64x48", poll_interval_ms=20)
        assert (video.status, video.error.code, video.error.message) == ("failed", "job_failed", "drawing failed")

    def test_what_is_wrong_is_raised(self, client: openai.OpenAI):
        with pytest.raises(openai.BadRequestError, match="seconds"):
            client.videos.create(prompt="a", seconds="12")
        with pytest.raises(openai.NotFoundError):
            client.videos.create(prompt="a", model="sora-2")

    @pytest.mark.parametrize(
        "given",
        [
            {"input_reference": ("first.png", PNG, "image/png")},
            {"input_reference": PNG},
            # Its types allow an object, and its code does not.
            {"extra_body": {"input_reference": {"image_url": URL}}},
        ],
        ids=["file", "bytes", "url"],
    )
    def test_a_picture_to_begin_with(self, client: openai.OpenAI, app: Application, given: dict[str, Any]):
        video = client.videos.create_and_poll(prompt="a", size="64x48", poll_interval_ms=20, **given)
        assert video.status == "completed"
        (asked,) = app.asker.asked
        assert asked.inputs().task == "image-to-video"
        np.testing.assert_array_equal(asked.inputs().pictures[0], PICTURE)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("https://example.org/a.png", "fetches nothing"),
        ("data:image/png;base64,AAAA", "no picture that can be read"),
        ({"file_id": "file_1"}, "keeps no files"),
        ({"image_url": 5}, "must be a text"),
        ([URL], "must be a text"),
        ("", "empty"),
        (URL[:-400], "broken"),
    ],
)
def test_pictures_that_cannot_be(app: Application, reference: object, words: str):
    response = app.http.post("/v1/videos", json={**VIDEO, "input_reference": reference})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["param"].startswith("input_reference")


def test_forms_that_cannot_be(app: Application):
    fields = {key: str(value) for key, value in VIDEO.items()}
    for files, param in [
        ([("input_reference", PNG), ("input_reference", PNG)], None),
        ([("picture", PNG)], "picture"),
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


def test_an_edit_for_later(app: Application):
    app.asker.model = EDITS
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20] = 255
    files = [("image[]", PNG), ("image[]", encode(PICTURE[::-1].copy(), "png")), ("mask", encode(mask, "png"))]
    response = app.http.post("/v1/images/edits", data={"prompt": "a", "size": "64x48"}, files=files, headers=LATER)
    assert response.status_code == 202, response.text
    app.once(response.headers["location"], lambda told: told["status"] == "completed")
    (asked,) = app.asker.asked
    inputs = asked.inputs()
    assert inputs.task == "inpaint"
    for kept, sent in zip(inputs.pictures, (PICTURE, PICTURE[::-1]), strict=True):
        np.testing.assert_array_equal(kept, sent)
    np.testing.assert_array_equal(inputs.mask, mask)
