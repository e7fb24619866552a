"""``locust --processes``: every process draws from a stream of its own, the same in every run with one seed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from loadtests import locustfile
from loadtests.users import Plan

ROOT = Path(__file__).parents[3]
LOCUSTFILE = ROOT / "loadtests" / "locustfile.py"
#: Far more seeds than requests: two equal requests in a row at the same place are no accident.
MIX = "seeds: 1000000\nentries: [{weight: 1, request: {prompt: a circle, size: 64x64}}]\n"


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    (path := tmp_path / "mix.yaml").write_text(MIX)
    return path


def plan_of(mix: Path, worker: int, seed: int = 0) -> Plan:
    """What locust's start of a test gives the users of one process."""
    options = SimpleNamespace(mix=str(mix), rate_per_user=0.05, abandonment=0.0, seed=seed)
    environment = SimpleNamespace(parsed_options=options, runner=SimpleNamespace(worker_index=worker))
    locustfile._plan(environment)
    return environment.plan


def drawn(plan: Plan, users: int = 3) -> list[tuple[float, int]]:
    """When the first requests of ``users`` users come, and for what."""
    sources = [plan.next_source() for _ in range(users)]
    return [(rng.expovariate(plan.rate_per_user), plan.mix.draw(rng).seed) for rng in sources for _ in range(20)]


def test_two_workers_are_no_twins(mix: Path):
    one, two = (drawn(plan_of(mix, worker)) for worker in (0, 1))
    assert not set(one) & set(two)


def test_a_run_can_be_repeated_worker_by_worker(mix: Path):
    for worker in (0, 1):
        assert drawn(plan_of(mix, worker)) == drawn(plan_of(mix, worker))
        assert drawn(plan_of(mix, worker, seed=1)) != drawn(plan_of(mix, worker))


def test_no_numbers_of_worker_and_user_meet(mix: Path):
    """Worker 1's user 11 is not worker 11's user 1."""
    firsts = [rng.random() for worker in range(15) for rng in _sources(plan_of(mix, worker), 15)]
    assert len(set(firsts)) == 15 * 15


def _sources(plan: Plan, users: int) -> list:
    return [plan.next_source() for _ in range(users)]


class Handler(BaseHTTPRequestHandler):
    """Refuses everything, and notes which connection (= which user) asked for which seed."""

    protocol_version = "HTTP/1.1"
    asked: dict[int, list[int]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked[self.client_address[1]].append(body["seed"])
        self.send_response(429)
        self.send_header("retry-after", "1")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[tuple[str, dict[int, list[int]]]]:
    asked: dict[int, list[int]] = defaultdict(list)
    handler = type("Noted", (Handler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def locust(*options: str) -> tuple[int, str]:
    """Run locust to its end: exit code and log.

    On a port of its own: workers that find another run's master on locust's usual one join it. In a session of its own:
    a master that cannot start leaves its workers behind. With gevent, which the tests of this folder do without.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *ports, *options]
    environment = {name: value for name, value in os.environ.items() if name != "LOCUST_SKIP_MONKEY_PATCH"}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, log = running.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    return running.returncode, log


def test_locust_with_two_processes_sends_no_twins(mix: Path, server: tuple[str, dict[int, list[int]]]):
    url, asked = server
    _, log = locust(
        *("--host", url, "--mix", str(mix), "--processes", "2", "--users", "4", "--spawn-rate", "100"),
        *("--run-time", "2s", "--stop-timeout", "1", "ClosedLoop"),
    )
    firsts = [tuple(seeds[:5]) for seeds in asked.values() if len(seeds) >= 5]
    assert len(firsts) == 4, f"four users, a connection each: {log[-2000:]}"
    assert len(set(firsts)) == 4, "users of two processes ask for the same pictures in the same order"


def test_a_mix_that_cannot_be_used_stops_locust(tmp_path: Path):
    (path := tmp_path / "mix.yaml").write_text("entries: [{weight: 1}]\n")
    code, log = locust("--host", "http://127.0.0.1:9", "--mix", str(path), "--run-time", "60s", "ClosedLoop")
    assert code != 0
    assert str(path) in log
