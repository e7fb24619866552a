"""Forms of parts are taken apart beside the event loop, and what they become in memory is bounded."""

from __future__ import annotations

import threading

import pydantic_core
import pytest
from fastapi.testclient import TestClient

from raycache.ingress.api import build_http_app
from raycache.ingress.forms import form_of
from raycache.protocol.errors import RequestError
from tests.helpers.image_files import file, scene
from tests.helpers.openai_surface import Service

KIND = "multipart/form-data; boundary=B"


def form(*fields: tuple[str, str]) -> bytes:
    parts = (f'--B\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields)
    return ("".join(parts) + "--B--\r\n").encode()


@pytest.mark.parametrize("name", ["from_json", "to_json"])
def test_no_field_is_read_on_the_event_loop(monkeypatch: pytest.MonkeyPatch, name: str):
    """A megabyte of brackets takes what a hundred requests take."""
    threads: list[str] = []
    real = getattr(pydantic_core, name)

    def noted(*args: object, **kwargs: object) -> object:
        threads.append(threading.current_thread().name)
        return real(*args, **kwargs)

    monkeypatch.setattr(pydantic_core, name, noted)
    with TestClient(build_http_app(Service())) as http:
        answer = http.post("/v1/images/edits", data={"prompt": "a", "nonsense": "[[]]"}, files={"image": file(scene())})
    assert answer.json()["error"]["param"] == "nonsense"
    assert threads
    assert all(thread.startswith("images") for thread in threads)


def test_lists_and_objects_are_bounded_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("raycache.ingress.forms._MOST_JSON", 20)
    texts = frozenset({"prompt"})
    fields = [("prompt", "[" * 100), ("a", "[1, 2, 3, 4]"), ("b", "7" * 50), ("c", "A" * 50), ("d", ' {"e":1}')]
    whole = form_of(form(*fields), KIND, texts, 0).fields
    assert (whole["prompt"], whole["a"], whole["d"]) == ("[" * 100, [1, 2, 3, 4], {"e": 1})
    with pytest.raises(RequestError, match=r"20 characters in total; send JSON") as refused:
        form_of(form(*fields, ("f", "[]")), KIND, texts, 0)
    assert (refused.value.status, refused.value.param) == (400, "f")
