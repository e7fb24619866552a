"""What arrives at Serve's proxy that nobody should send: over real sockets, to the application that all tests share."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from raycache.testing.inject import wait_for
from tests.helpers.asking import URL, being_drawn, draw, pixels, sent
from tests.serving.test_operations import log_lines

BODY = f"POST {URL} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{{".encode()
HALVES = [b"", b"GET", b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ", b"\x16\x03\x01", BODY[:-1], BODY]


@pytest.fixture
def files() -> Iterator[None]:
    """As many open sockets as the test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connected(url: str, *bytes_sent: bytes) -> socket.socket:
    place = urlsplit(url)
    connection = socket.create_connection((place.hostname, place.port), timeout=30)
    connection.sendall(b"".join(bytes_sent))
    return connection


def answered(url: str, head: bytes) -> tuple[int, bytes]:
    """Status and everything else."""
    with connected(url, head) as connection:
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    return int(answer.split()[1]), answer


def test_1100_unfinished_bodies_take_liveness_from_nobody(flux: str, files: None):
    healthy = pixels(draw(flux))
    with ExitStack() as crowd:
        for _ in range(1100):
            crowd.enter_context(connected(flux, BODY))
        time.sleep(1.0)
        began = time.monotonic()
        assert httpx.get(f"{flux}/healthz", timeout=30).status_code == 200
        assert time.monotonic() - began < 5
        np.testing.assert_array_equal(pixels(draw(flux)), healthy)


@pytest.mark.parametrize("given", [b"Gr\xf6\xdfe", "Größe".encode(), b"a\x85b\xff", b"x" * 3000, b"", b"a\tb"])
def test_no_id_of_a_request_is_a_failure(flux: str, given: bytes):
    status, answer = answered(
        flux, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-request-id: " + given + b"\r\n\r\n"
    )
    assert status == 200, answer
    (back,) = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"x-request-id: ")]
    assert 0 < len(back) <= len(b"x-request-id: ") + 128
    assert back.isascii()


def test_heads_are_bounded_and_serves_own_words_have_openais_shape(flux: str):
    lines = b"GET /nowhere HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    assert answered(flux, lines + b"a: b\r\n" * 200 + b"\r\n")[0] == 431
    assert answered(flux, lines + b"a: " + b"b" * 70_000)[0] == 431
    reply = httpx.get(f"{flux}/nowhere")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")


def test_halves_and_leavers_cost_no_traceback(flux: str):
    before = {name: len(tracebacks(name)) for name in ("proxy", "replica_flux")}
    for half in HALVES:
        connected(flux, half).close()
    with being_drawn(flux), sent(flux, num_inference_steps=5000):
        time.sleep(0.5)
    wait_for(lambda: draw(flux).status_code == 200, 60)
    assert {name: len(tracebacks(name)) for name in before} == before


def tracebacks(name: str) -> list[str]:
    return [line for line in log_lines(name) if "Traceback" in line or "Error:" in line]
