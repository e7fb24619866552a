"""locust's own web UI on our file: what it offers, and what a user there is. A local HTTP server is the service."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from loadtests import locustfile
from loadtests.shapes import Burst, Constant, Steps
from tests.unit.loadtests.test_processes import locust, mix, server

__all__ = ["mix", "server"]


@pytest.mark.slow
def test_the_class_picker_offers_shapes_that_read_what_is_typed(mix: Path, server: tuple[str, dict[int, list[int]]]):
    url, asked = server
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--mix", str(mix), "--class-picker", "--web-port", str(port), "--host", url)
    with locust(*options, headless=False) as running, httpx.Client(base_url=f"http://127.0.0.1:{port}") as ui:
        page = _page(ui, running)
        assert re.search(r'"available_shape_classes": \["Default", "Burst", "Steps"\]', page)
        assert re.search(r'"available_user_classes": \["ClosedLoop", "OpenLoop"\]', page)
        form = {"user_count": 2, "spawn_rate": 9, "run_time": "600", "user_classes": "ClosedLoop"}
        assert ui.post("/swarm", data={**form, "shape_class": "Steps"}).json()["success"]
        until = time.monotonic() + 60
        while len(asked) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert len(asked) == 2, "two users, a connection each"
        assert ui.get("/stats/requests").json()["user_count"] == 2


def _page(ui: httpx.Client, running) -> str:
    until = time.monotonic() + 100
    while time.monotonic() < until:
        assert running.poll() is None, running.stderr.read()
        try:
            return ui.get("/").text
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError("no web UI")


def chosen(shape: str = "", users: list[str] | None = None) -> SimpleNamespace:
    """locust's environment after its start, as it is where nobody chose: all users of the file, and its first shape."""
    classes = {"ClosedLoop": locustfile.ClosedLoop, "OpenLoop": locustfile.OpenLoop}
    options = SimpleNamespace(shape=shape, user_classes=users or [], num_users=3, run_time=60)
    environment = SimpleNamespace(
        parsed_options=options, available_user_classes=classes, user_classes=list(classes.values()),
        available_shape_classes={"Burst": Burst(), "Steps": Steps()}, shape_class=Burst(),
    )  # fmt: skip
    environment.runner = SimpleNamespace(environment=environment)
    locustfile._choose(environment)
    return environment


def test_a_user_is_a_client_that_waits_unless_another_is_named():
    assert chosen().user_classes == [locustfile.ClosedLoop]
    assert locustfile.OpenLoop in chosen(users=["OpenLoop"]).user_classes


def test_no_shape_rules_unless_it_is_named():
    """locust takes the first of the file, and --users and --run-time would mean nothing."""
    assert chosen().shape_class is None
    assert isinstance(chosen(shape="Steps").shape_class, Steps)


def test_shapes_take_users_and_run_time_from_locust():
    steps = chosen(shape="Steps").shape_class
    assert [steps.at(time) for time in (0, 9, 11, 59)] == [3, 3, 6, 18]
    assert not steps.over(59)
    assert steps.over(60)
    burst = chosen(shape="Burst").shape_class
    assert [burst.at(time) for time in (0, 14, 15, 16, 29, 45)] == [3, 30, 30, 30, 3, 30]


@pytest.mark.parametrize("shape", [Burst(), Steps(), Constant()])
def test_a_shape_alone_has_an_end(shape):
    assert shape.at(0) == 1
    assert shape.over(600)


def test_levels_are_those_that_came_and_are_forgotten_at_a_new_start():
    shape, times = Steps(4, seconds=60), [0.0, 1.0, 10.4, 11.0, 20.2]
    shape.get_run_time = iter(times).__next__
    for _ in times:
        shape.tick()
    assert shape.levels == [(0.0, 4), (10.4, 8), (20.2, 12)]
    shape.reset_time()
    assert not shape.levels
