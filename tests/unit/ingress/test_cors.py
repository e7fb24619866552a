"""Pages of other origins: let in by name, and able to read every answer, that to a bug too."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from raycache.ingress.api import build_http_app
from raycache.protocol.errors import unavailable
from raycache.settings import AppSettings
from tests.helpers.fake_service import URL, FakeService

PAGE = "https://page.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


def client_of(*origins: str, service: FakeService | None = None) -> TestClient:
    service = service or FakeService()
    service.settings = AppSettings.model_validate({"model": {"path": "noise"}, "ingress": {"cors_origins": [*origins]}})
    return TestClient(build_http_app(service), raise_server_exceptions=False, headers={"origin": PAGE})


def cors(answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def test_off_by_default():
    client = TestClient(build_http_app(FakeService()), headers={"origin": PAGE})
    for answer in (
        client.get("/healthz"),
        client.post(URL, json={"prompt": "a"}),
        client.options(URL, headers=PREFLIGHT),
    ):
        assert not cors(answer)
    assert answer.status_code == 405


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example", PAGE), ("*",)])
def test_a_page_that_is_let_in_may_ask_and_read(origins: tuple[str, ...]):
    service = FakeService()
    service.keys = (b"secret",)
    client = client_of(*origins, service=service)
    asked = client.options(URL, headers=PREFLIGHT)  # a preflight carries no key
    assert asked.status_code == 200
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    keyless = client.post(URL, json={"prompt": "a"})
    drawn = client.post(URL, json={"prompt": "a"}, headers={"authorization": "Bearer secret"})
    assert (keyless.status_code, drawn.status_code) == (401, 200)
    for answer in (asked, keyless, drawn):
        assert answer.headers["access-control-allow-origin"] in (PAGE, "*")
        assert "access-control-allow-credentials" not in answer.headers
    assert "retry-after" in drawn.headers["access-control-expose-headers"]


def test_refusals_and_bugs_can_be_read_too():
    service = FakeService()
    client = client_of(PAGE, service=service)
    for failure, status in ((unavailable("starting"), 503), (RuntimeError("bug"), 500)):
        service.failure = failure
        answer = client.post(URL, json={"prompt": "a"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
    assert client.get("/nowhere").headers["access-control-allow-origin"] == PAGE


def test_other_pages_are_not_let_in():
    client = client_of("https://other.example")
    assert client.options(URL, headers=PREFLIGHT).status_code == 400
    assert "access-control-allow-origin" not in client.post(URL, json={"prompt": "a"}).headers


@pytest.mark.slow
@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "https://[::1]:8443", "chrome-extension://abcdef", "http://web_ui:3000", "*"]
)
def test_origins(origin: str):
    client = client_of(f"{origin}\u00a0")  # as an editor left it
    assert client.get("/healthz", headers={"origin": origin}).headers["access-control-allow-origin"] in (origin, "*")


@pytest.mark.parametrize(
    "origin",
    [
        "page.example",
        "https://page.example/",
        "https://page.example/x",
        "https://Page.example",
        "https://page.example:443",
        "http://page.example:80",
        "http://page.example:080",
        "http://page.example:99999",
        "https://*.example",
        "https://bücher.example",
        "https://",
        "null",
        "",
    ],
)
def test_what_no_browser_sends_stops_the_start(origin: str):
    with pytest.raises(ValidationError, match=r"ingress\.cors_origins\.0"):
        AppSettings.model_validate({"model": {"path": "noise"}, "ingress": {"cors_origins": [origin]}})
