"""`raycache bench`: rounds over all settings, against a service that draws what a test tells it to."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from raycache.command.main import app
from tests.helpers.local_server import served

#: Seconds, share of blocks and difference of all pixels from the exact image, by setting.
TAKES = {"exact": (4.0, None, 0), "fast": (1.0, 0.25, 10), "FBCache": (2.0, 0.5, 5)}


class Service(BaseHTTPRequestHandler):
    """Answers with a grey image; each round takes longer than the one before, as on a machine that gets busier."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: object) -> None:
        """Silent."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        seconds, share, off = TAKES[body.get("quality") or body["cache"]["type"]]
        image = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 100 + body["seed"] + off, np.uint8)).save(image, "png")
        told = {
            "type": "image_generation.completed",
            "b64_json": base64.b64encode(image.getvalue()).decode(),
            "size": "8x8",
            "seed": body["seed"],
            "times": {"queue": 50.0, "denoise": seconds * body["seed"]},
            "report": share and {"totals": {"computed_block_fraction": [share]}},
            "warnings": ["a small model"],
        }
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())


@pytest.fixture
def url() -> Iterator[str]:
    Service.asked.clear()
    with served(Service) as url:
        yield url


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "120"})


def test_each_round_has_every_setting_and_the_first_is_the_measure(url: str, tmp_path: Path):
    named = ("--with", "exact", "--with", "fast", "--with", '{"type": "FBCache"}', "--rounds", "3", "--seed", "1")
    result = run("--url", url, *named, "--size", "8x8", "--steps", "4", "-o", str(tmp_path / "x.json"))
    assert result.exit_code == 0, result.stderr
    order = [(one["seed"], one.get("quality") or one["cache"]["type"]) for one in Service.asked]
    assert order == [(seed, name) for seed in (1, 1, 2, 3) for name in TAKES], "one round more, which warms up"
    assert {(one["size"], one["num_inference_steps"], one["output_format"]) for one in Service.asked} == {
        ("8x8", 4, "png")
    }
    written = json.loads((tmp_path / "x.json").read_text())["settings"]
    assert written["fast"]["seconds"] == [1, 2, 3], "without the queue"
    assert written["exact"]["computed_share"] == [1, 1, 1]
    assert written["exact"]["psnr"] == [None] * 3
    lines = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.count("│") > 5}
    decibels = {off: 20 * math.log10(255 / off) for off in (5, 10)}
    for name, told in {
        "exact": ("8.00", "4.00-12.00", "1.00", "100 %", "same"),
        "fast": ("2.00", "1.00-3.00", "4.00", "25 %", f"{decibels[10]:.1f}"),
        '{"type": "FBCache"}': ("4.00", "2.00-6.00", "2.00", "50 %", f"{decibels[5]:.1f}"),
    }.items():
        assert [cell.strip() for cell in lines[name].split("│")[2:-1]] == list(told)
    assert result.stderr.count("a small model") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--with", '{"type": '), "JSON"),
        (("-o", "nowhere/x.json"), "no folder"),
        (("--rounds", "0"), "rounds"),
    ],
)
def test_a_wrong_option_is_told_before_anything_is_drawn(url: str, arguments: tuple[str, ...], told: str):
    result = run("--url", url, *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not Service.asked


def test_a_setting_that_is_refused_ends_it_in_the_first_round():
    result = run("--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "raycache serve" in result.stderr
