"""`raycache draw`: files it will not write, a service it asks, and the bundled model where there is none."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from typer.testing import CliRunner

from raycache.command import drawn as drawn_module
from raycache.command.main import app
from tests.helpers.local_server import served


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["draw", "a red circle", *arguments])


class Service(BaseHTTPRequestHandler):
    """Answers as the HTTP API's documents say, each request in the way of its prompt."""

    asked: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []
    image = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(image, "png")

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _send(self, status: int, kind: str, body: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self._send(200, "application/json", '{"ready": true}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        self.keys.append(self.headers["authorization"])
        if body.get("size") == "7x7":
            error = {"message": "size: not a multiple", "type": "invalid_request_error", "param": "size", "code": "x"}
            return self._send(400, "application/json", json.dumps({"error": error}))
        events: list[dict[str, Any]] = [
            {"type": "raycache.queued", "ahead": 1, "seconds_left": 3.0},
            {"type": "raycache.progress", "step": 1, "steps": 2, "cached": [], "residual_diff": []},
        ]
        if body.get("seed") == 13:
            events.append({"type": "error", "error": {"message": "the ranks were lost"}})
        else:
            data = base64.b64encode(self.image.getvalue()).decode()
            told = {"b64_json": data, "size": "16x16", "seed": 5, "times": {"denoise": 1.5}, "warnings": ["odd word"]}
            events.append({"type": "image_generation.completed", **told})
        lines = [f": comment\n\nevent: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
        return self._send(200, "text/event-stream", "".join(lines))


@pytest.fixture
def url() -> Iterator[str]:
    Service.asked.clear()
    Service.keys.clear()
    with served(Service) as url:
        yield url


@pytest.fixture
def no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_module, "HERE", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("x.gif", ".png, .jpg, .jpeg, .webp"),
        ("x", "suffix"),
        ("there.png", "--force"),
        ("nowhere/x.png", "no folder"),
        ("folder.png", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_drawn(out: str, told: str, tmp_path: Path):
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    result = run("-o", str(tmp_path / out))
    assert result.exit_code == 2
    assert told in result.stderr
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_a_running_service_draws(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(drawn_module, "HERE", url)
    monkeypatch.setenv("RAYCACHE_API_KEY", "secret")
    options = ("--size", "16x16", "--steps", "2", "--seed", "5", "--quality", "fast", "--cache", "none")
    result = run("-o", str(tmp_path / "x.webp"), *options)
    assert result.exit_code == 0, result.stderr
    assert Service.asked == [
        {
            "prompt": "a red circle",
            "size": "16x16",
            "num_inference_steps": 2,
            "seed": 5,
            "quality": "fast",
            "cache": {"type": "none"},
            "output_format": "webp",
            "stream": True,
        }
    ]
    assert Service.keys == ["Bearer secret"]
    assert (tmp_path / "x.webp").read_bytes() == Service.image.getvalue()
    assert "odd word" in result.stderr
    assert "seed 5" in result.stderr


@pytest.mark.parametrize(
    ("option", "code", "told"),
    [(("--size", "7x7"), 2, "size: not a multiple"), (("--seed", "13"), 1, "the ranks were lost")],
)
def test_what_the_service_says_is_told(url: str, tmp_path: Path, option: tuple[str, str], code: int, told: str):
    result = run("-o", str(tmp_path / "x.png"), "--url", url, *option)
    assert result.exit_code == code
    assert told in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "127.0.0.1:1", "http://[", "nonsense"])
def test_a_service_that_was_named_and_is_not_there(address: str, tmp_path: Path):
    result = run("-o", str(tmp_path / "x.png"), "--url", address)
    assert result.exit_code == 1
    assert "raycache serve" in result.stderr


@pytest.mark.slow
def test_the_bundled_model_draws_where_no_service_does(no_service: None, tmp_path: Path):
    """What `diffusers` alone draws, without any code of this project, up to rounding."""
    import numpy as np
    import torch
    from diffusers import FluxPipeline

    from raycache.demo import demo_model_path

    options = ("--steps", "2", "--seed", "7", "--cache", "none", "--size", "64x64")
    result = run("-o", str(tmp_path / "x.png"), *options)
    assert result.exit_code == 0, result.stderr
    drawn = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    pipe = FluxPipeline.from_pretrained(demo_model_path(), torch_dtype=torch.float32)
    alone = pipe(
        "a red circle",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert abs(drawn - np.asarray(alone).astype(int)).max() <= 1
    assert "trained at 128x128" in result.stderr, "its card's warning"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--size", "17x12"), "16x16"),
        (("--cache", "TeaCache"), "DBPrune"),
        (("--cache", '{"type": "DBCache"'), "JSON"),
        (("--cache", '{"type": "DBCache", "Fn_compute_blocks": 99}'), "20"),
        (("--steps", "0"), "num_inference_steps"),
        (("--quality", "best"), "balanced"),
    ],
)
def test_a_wrong_request_is_told_before_weights_are_read(
    no_service: None, tmp_path: Path, option: tuple[str, str], told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("raycache.command.drawing._loaded", lambda settings: pytest.fail("loaded"))
    result = run("-o", str(tmp_path / "x.png"), *option)
    assert result.exit_code == 2
    assert told in result.stderr
