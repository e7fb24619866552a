"""Files of results over HTTP: whole and in part."""

from __future__ import annotations

import contextlib

import pytest

from raycache.ingress.contents import byte_range
from raycache.protocol.errors import RequestError
from tests.helpers.fake_service import check_error
from tests.helpers.stored_app import Application, frames_of


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


def test_a_result_is_asked_for_by_its_name_only(app: Application):
    url = f"/v1/videos/{app.done()['id']}/content"
    for variant in ("job.json", "../job.json", "spritesheet", ""):
        check_error(app.http.get(url, params={"variant": variant}), 400, "invalid_value", "variant")
