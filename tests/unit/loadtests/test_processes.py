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
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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


def arrivals(plan: Plan, users: int = 5, length: float = 2000.0) -> list[float]:
    """Of all users of one process, in seconds."""
    times = []
    for rng in _sources(plan, users):
        now = 0.0
        while (now := now + rng.expovariate(plan.rate_per_user)) < length:
            times.append(now)
    return sorted(times)


def test_arrivals_of_two_workers_are_two_poisson_streams(mix: Path):
    """Twins, closer than 10 ms to one of the other process, are as many as chance makes: 2 x 0.01 s x 0.25 a second."""
    one, two = (np.array(arrivals(plan_of(mix, worker))) for worker in (0, 1))
    assert min(len(one), len(two)) > 400
    beside = two[np.clip(np.searchsorted(two, one), 1, len(two) - 1) - np.array([[1], [0]])]
    twins = (np.abs(beside - one).min(axis=0) < 0.01).mean()
    assert twins < 0.03, f"{twins:.0%} of arrivals are twins"
    gaps = np.diff(np.sort(np.concatenate([one, two])))
    # Of a Poisson stream the gaps are as wide on average as they spread; pairs make that 1.7 and more.
    assert gaps.mean() == pytest.approx(1 / 0.5, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.12)


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


@contextlib.contextmanager
def locust(*options: str, headless: bool = True) -> Iterator[subprocess.Popen[str]]:
    """locust while the block runs; its log goes to ``stderr``.

    On a port of its own: workers that find another run's master on locust's usual one join it. In a session of its own:
    a master that cannot start leaves its workers behind. With gevent, which the tests of this folder do without.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(LOCUSTFILE),
        *ports,
        *options,
        *(("--headless",) if headless else ()),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "LOCUST_SKIP_MONKEY_PATCH"}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


@pytest.mark.slow
def test_locust_with_two_processes_sends_no_twins(mix: Path, server: tuple[str, dict[int, list[int]]]):
    url, asked = server
    options = ("--mix", str(mix), "--processes", "2", "--users", "4", "--spawn-rate", "100", "--run-time", "120s")
    with locust("--host", url, *options, "ClosedLoop") as running:
        # As long as it takes: on a busy machine the processes begin late.
        until = time.monotonic() + 100
        while (few := sum(len(seeds) >= 5 for seeds in asked.copy().values()) < 4) and time.monotonic() < until:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
    assert not few, f"four users, a connection each: {dict(asked)}"
    firsts = [tuple(seeds[:5]) for seeds in asked.values()]
    assert len(set(firsts)) == len(firsts), "users of two processes ask for the same images in the same order"


@pytest.mark.slow
def test_a_mix_that_cannot_be_used_stops_locust(tmp_path: Path):
    (path := tmp_path / "mix.yaml").write_text("entries: [{weight: 1}]\n")
    with locust("--host", "http://127.0.0.1:9", "--mix", str(path), "--run-time", "120s", "ClosedLoop") as running:
        _, log = running.communicate(timeout=100)
    assert running.returncode not in (0, None)
    assert str(path) in log
