"""docs/requests.md: its examples run over the application in process, and its tables are those of the code.

So is the curl of docs/start.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import openai
import pytest
from fastapi.testclient import TestClient

from raycache.ingress.api import build_http_app
from tests.helpers.openai_surface import Service
from tests.helpers.snippets import ROOT, commands, snippets

PAGE = "docs/requests.md"
#: By the function that makes an error: which argument is its code, and its status where no argument says it.
MAKERS = {"RequestError": (3, None), "invalid": (3, 400), "unavailable": (2, 503)}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(build_http_app(service), base_url="http://127.0.0.1:8000") as http:
        yield http


def asked(http: TestClient, words: list[str]):
    """The answer to a curl command."""
    assert words[0] == "curl"
    options = {words[at]: words[at + 1] for at, word in enumerate(words) if word in ("-d", "-o")}
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    address = words[1].removeprefix("localhost:8000")
    return http.request("POST" if "-d" in options else "GET", address, headers=headers, content=options.get("-d"))


@pytest.mark.parametrize("page", [PAGE, "docs/start.md"])
def test_every_curl(page: str, http: TestClient, service: Service):
    told = [words for block in snippets(page, "bash") for words in commands(block.code) if words[0] == "curl"]
    assert told
    for words in told:
        answer = asked(http, words)
        assert answer.status_code == 200, answer.text
        if wanted := next((word for word in words if word.startswith("accept: ")), None):
            assert answer.headers["content-type"] == wanted.removeprefix("accept: ")
    assert all(order.prompt.startswith("a red circle") for order in service.orders)
    assert len(service.orders) == sum("-d" in words for words in told)


def test_the_stream(http: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=http))
    (example,) = snippets(PAGE, "python")
    example.run({})
    told = set(capsys.readouterr().out.split())
    assert {"raycache.progress", "image_generation.partial_image", "image_generation.completed"} <= told
    text = (ROOT / PAGE).read_text()
    assert all(f"| `{event}` |" in text for event in told)


def test_every_field_of_an_answer(http: TestClient):
    answer = http.post("/v1/images/generations", json={"prompt": "a red circle"}).json()
    text = (ROOT / PAGE).read_text()
    assert [name for name in answer if f"`{name}`" not in text] == []


def told_codes() -> set[tuple[str, str]]:
    """Status and code of each error in the page's table."""
    rows = re.findall(r"^\| ([\d, ]+) \| (`[^|]*`) \|", (ROOT / PAGE).read_text(), re.MULTILINE)
    return {
        (status, code) for said, codes in rows for status in said.split(", ") for code in codes.strip("`").split("`, `")
    }


def raised_codes(path: Path) -> Iterator[tuple[str, str]]:
    """Status and code of each error that a module raises in so many words."""
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in MAKERS:
            continue
        at, status = MAKERS[call.func.id]
        code = next((word.value for word in call.keywords if word.arg == "code"), None)
        code = code or (call.args[at] if len(call.args) > at else None)
        status = status or getattr(call.args[0], "value", None)
        if isinstance(code, ast.Constant) and isinstance(status, int):
            yield str(status), code.value


def test_every_error_of_the_code_is_in_the_table_and_no_other():
    raised = {error for path in (ROOT / "raycache").rglob("*.py") for error in raised_codes(path)}
    # What a maker says where nobody else does, and what depends on a status.
    raised |= {("400", "invalid_value"), ("503", "not_ready"), ("429", "too_many_stored")}
    assert len(raised) > 40
    assert told_codes() == raised
