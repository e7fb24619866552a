"""The examples of docs/edits.md, as they stand, over the application in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from ray import serve

from raycache.ingress.api import build_http_app
from raycache.limits import LimitSettings
from tests.helpers.image_files import file, scene
from tests.helpers.openai_surface import MODEL, Service
from tests.helpers.snippets import ROOT, commands, snippets

PAGE = (ROOT / "docs" / "edits.md").read_text()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """With the files that the page names."""
    monkeypatch.chdir(tmp_path)
    Path("room.png").write_bytes(file(scene()))
    Path("sofa.jpg").write_bytes(file(scene(), "JPEG"))
    Path("mask.png").write_bytes(file(np.full((16, 24), 255, np.uint8)))
    service = Service()
    service.model = replace(MODEL, tasks=("edit", "inpaint", "image-to-image"), max_inputs=4)
    return service


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    with TestClient(build_http_app(service), base_url="http://127.0.0.1:8000") as http:
        yield http


def test_curl(http: TestClient, service: Service):
    (block,) = snippets("docs/edits.md", "bash")
    for words in commands(block.code):
        assert words[:2] == ["curl", "localhost:8000/v1/images/edits"]
        fields = [words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "-F"]
        sent = [(name, (value[1:], Path(value[1:]).read_bytes())) for name, value in fields if value[0] == "@"]
        answer = http.post("/v1/images/edits", data=dict(f for f in fields if f[1][0] != "@"), files=sent)
        assert answer.status_code == 200, answer.text
    orders = service.orders
    assert [order.inputs.task for order in orders] == ["edit", "inpaint", "edit", "image-to-image"]
    assert [order.cache.type for order in orders] == ["DBCache", "DBCache", "DBCache", "none"]
    assert orders[0].seed == 7


def remote(call: Callable, request: object) -> SimpleNamespace:
    return SimpleNamespace(result=lambda: asyncio.run(call(request)))


def test_python(
    http: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    handle = SimpleNamespace(generate=SimpleNamespace(remote=partial(remote, service.generate)))
    monkeypatch.setattr(serve, "get_app_handle", {"flux": handle}.get)
    monkeypatch.setattr(openai, "OpenAI", partial(openai.OpenAI, http_client=http))
    examples = snippets("docs/edits.md", "python")
    assert len(examples) == 2
    for example in examples:
        example.run({})
    assert [order.inputs.task for order in service.orders] == ["edit", "inpaint", "edit"]
    assert "image_edit.completed" in capsys.readouterr().out
    assert Path("image.png").read_bytes()[:4] == b"\x89PNG"


def test_the_bounds_that_it_names():
    limits = LimitSettings()
    assert f"{limits.max_upload_bytes >> 20} MiB; 64 MiB at most" in PAGE
    assert f"| {limits.max_input_bytes >> 20} MiB |" in PAGE
    assert "4096 x 4096" in PAGE
    assert limits.max_input_pixels == 4096 * 4096
