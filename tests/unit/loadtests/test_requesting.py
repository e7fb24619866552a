"""Judging answers: a plain local HTTP server plays the service."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import requests
from PIL import Image

from loadtests.mix import Ask
from loadtests.records import Record, Recorder
from loadtests.requesting import send

TIMES = {"queue": 0.5, "encode": 0.1, "denoise": 0.2, "decode": 0.3}


def image(size=(64, 64), colour="red") -> str:
    return encoded(Image.new("RGB", size, colour))


def encoded(opened: Image.Image) -> str:
    buffer = io.BytesIO()
    opened.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def reply(*images: str) -> bytes:
    report = {"totals": {"computed_block_fraction": [0.5]}}
    return json.dumps({"data": [{"b64_json": p} for p in images], "times": TIMES, "report": report}).encode()


class Handler(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, dict[str, str], bytes, float]]
    keys: ClassVar[list[str | None]] = []

    def do_POST(self):
        self.keys.append(self.headers["authorization"])
        self.rfile.read(int(self.headers["content-length"]))
        status, headers, body, wait = self.answer
        time.sleep(wait)
        self.send_response(status)
        for name, value in ({"content-length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Response:
    """What locust's ``catch_response`` adds to a response."""

    def __init__(self, response):
        self._response, self.request_meta, self.error = response, {}, None

    def __getattr__(self, name):
        return getattr(self._response, name)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def success(self):
        self.judged = "success"

    def failure(self, words):
        self.judged = words


class _Dead:
    status_code = 0

    def __init__(self, error):
        self.error, self.request_meta = error, {}

    __enter__, __exit__ = _Response.__enter__, _Response.__exit__
    success, failure = _Response.success, _Response.failure


class Session:
    """locust's ``HttpSession`` in what is used of it: errors of the connection are in the response, not raised."""

    def __init__(self, url):
        self._url = url

    def post(self, path, *, json, headers, name, catch_response, stream, timeout):
        try:
            sent = requests.post(self._url + path, json=json, headers=headers, stream=stream, timeout=timeout)
            return _Response(sent)
        except requests.RequestException as error:
            return _Dead(error)


def ask(url, answer, *, recorder=None, stream=False, leaves=False, patience=5.0, seed=7, n=1) -> Record:
    Handler.answer = answer if len(answer) == 4 else (*answer, 0.0)
    record = Record(0, seed, intended=0.0)
    body = {"prompt": "x", "size": "64x64", "seed": seed, "n": n}
    send(
        Session(url),
        Ask(0, seed, body, stream),
        record,
        recorder if recorder is not None else Recorder(),
        time.monotonic(),
        patience=patience,
        leaves=leaves,
        check=True,
    )
    return record


def test_an_image(url):
    record = ask(url, (200, {}, reply(image())))
    assert (record.outcome, record.images, record.computed) == ("done", 1, 0.5)
    assert (record.queue, record.decode) == (0.5, 0.3)
    assert record.latency > 0


@pytest.mark.parametrize(
    ("images", "n", "cause"),
    [
        ([image((64, 48))], 1, "size"),
        ([image()], 2, "size"),
        (["!!"], 1, "undecodable"),
        (["AAAA"], 1, "undecodable"),
    ],
)
def test_another_image_than_asked_for_is_wrong(url, images, n, cause):
    record = ask(url, (200, {}, reply(*images)), n=n)
    assert (record.outcome, record.cause) == ("wrong", cause)


def test_rounding_makes_no_other_image(url):
    """Requests that share calls of the transformer differ by that from those that do not."""
    recorder, pixels = Recorder(), np.random.default_rng(0).integers(1, 255, (64, 64, 3))
    for off in (0, 1, -1):
        shown = reply(encoded(Image.fromarray((pixels + off).astype(np.uint8))))
        assert ask(url, (200, {}, shown), recorder=recorder).outcome == "done"
    moved = reply(encoded(Image.fromarray(np.roll(pixels, 9, axis=0).astype(np.uint8))))
    assert ask(url, (200, {}, moved), recorder=recorder).cause == "pixels"


def test_a_repeated_seed_that_gives_another_image_is_wrong(url):
    recorder = Recorder()
    assert ask(url, (200, {}, reply(image())), recorder=recorder).outcome == "done"
    assert ask(url, (200, {}, reply(image())), recorder=recorder).outcome == "done"
    record = ask(url, (200, {}, reply(image(colour="blue"))), recorder=recorder)
    assert (record.outcome, record.cause) == ("wrong", "pixels")
    assert len(recorder.records) == 3


@pytest.mark.parametrize(
    ("status", "headers", "code", "outcome"),
    [
        (429, {"retry-after": "3"}, "queue_full", "refused"),
        (503, {"retry-after": "3"}, "unavailable", "refused"),
        (429, {}, "queue_full", "wrong"),
        (504, {}, "deadline_exceeded", "aborted"),
        (500, {}, "job_failed", "failed"),
    ],
)
def test_errors_by_what_they_say(url, status, headers, code, outcome):
    record = ask(url, (status, headers, json.dumps({"error": {"code": code}}).encode()))
    assert (record.outcome, record.cause, record.status) == (outcome, code, status)


def test_a_client_that_leaves_is_no_failure_and_one_that_is_left_is(url):
    slow = (200, {}, reply(image()), 1.0)
    assert ask(url, slow, leaves=True, patience=0.1).outcome == "abandoned"
    assert ask(url, slow, leaves=False, patience=0.1).outcome == "failed"


def test_a_stream(url):
    events = [
        {"type": "raycache.progress", "step": 1},
        {"type": "image_generation.partial_image", "b64_json": image((32, 32))},
        {"type": "image_generation.completed", "b64_json": image(), "times": TIMES},
    ]
    body = "".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    record = ask(url, (200, {"content-type": "text/event-stream"}, body), stream=True)
    assert (record.outcome, record.images, record.queue) == ("done", 1, 0.5)
    assert 0 < record.first_event <= record.first_preview


def test_a_stream_that_ends_early_is_a_failure(url):
    body = b'data: {"type": "raycache.progress"}\n\n'
    assert ask(url, (200, {}, body), stream=True).outcome == "failed"


def test_a_service_with_keys_is_sent_one(url, monkeypatch):
    for key, header in (("alpha", "Bearer alpha"), ("", None)):
        monkeypatch.setenv("RAYCACHE_API_KEY", key)
        ask(url, (200, {}, reply(image())))
        assert Handler.keys[-1] == header
