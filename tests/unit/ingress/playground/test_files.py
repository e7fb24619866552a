"""The files of the page: how they are served, and what may not be in them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import raycache
from raycache.ingress.api import build_http_app
from raycache.settings import AppSettings
from tests.helpers.fake_service import FakeService, check_error

PACKAGE = Path(raycache.__file__).parent
FILES = sorted((PACKAGE / "ingress" / "playground").iterdir())
#: A name that browsers know, and never ask for.
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.keys = (b"secret",)
    return service


@pytest.fixture
def client(service: FakeService) -> TestClient:
    return TestClient(build_http_app(service))


def test_the_page_needs_no_key_and_may_ask_nobody_but_its_service(client):
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.head("/").text == ""


def test_all_that_the_page_names_is_served_with_its_type(client):
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    named = set(re.findall(r'"(playground/[^"]+)"', client.get("/").text))
    scripts = [path for path in FILES if path.suffix == ".js"]
    named |= {f"playground/{name}" for path in scripts for name in re.findall(r'from "./(.*)"', path.read_text())}
    assert {path.name for path in FILES} - {"index.html"} == {name.partition("/")[2] for name in named}
    for name in named:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(types[Path(name).suffix])
    check_error(client.get("/playground/none.js"), 404, "not_found")
    assert client.get("/playground/..%2Froutes%2Fhealth.py").status_code == 404


def test_browsers_ask_again_and_get_only_what_has_changed(client):
    first = client.get("/playground/page.css")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/playground/page.css", headers={"if-none-match": f'W/"x", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/playground/page.css", headers={"if-none-match": '"x"'}).status_code == 200


def test_it_can_be_left_out(service):
    settings = {"model": {"path": "noise"}, "ingress": {"playground": False}}
    service.settings = AppSettings.model_validate(settings)
    client = TestClient(build_http_app(service))
    check_error(client.get("/"), 404)
    check_error(client.get("/playground/page.css"), 404)


def test_it_is_small_and_knows_no_other_address():
    assert sum(path.stat().st_size for path in FILES) < 60_000
    for path in FILES:
        text = path.read_text().replace(NAMESPACE, "")
        assert not re.search(r"(https?|wss?):|url\(|@import|//[a-z]+\.", text), path
        assert len(text.splitlines()) < 275, path
    assert not re.search(r"<script(?! type=\"module\" src)|<style| style=| on[a-z]+=", FILES_BY_NAME["index.html"])


FILES_BY_NAME = {path.name: path.read_text() for path in FILES}


def test_the_wheel_brings_it():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["raycache"]
    brought = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert set(FILES) <= brought
