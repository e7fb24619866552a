"""Who listens on the port: found although SO_REUSEPORT lets a second one in; the first may stay."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from raycache.cluster import port_check
from raycache.cluster.port_check import Listener, intruders, listeners, own_pids

GCS = "127.0.0.1:6379"


@pytest.fixture
def port() -> Iterator[int]:
    """One that this process listens on, as Serve's proxy does."""
    with listening("127.0.0.1", 0) as taken:
        yield taken.getsockname()[1]


def listening(host: str, port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind((host, port))
    made.listen()
    return made


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_is_there_is_named(port: int, host: str):
    with listening(host, port):  # nothing of the system's own keeps a second one out
        (found,) = listeners(host, port, GCS)
    assert found.pid == os.getpid()
    assert found.name.split()[0] in (psutil.Process().cmdline()[0], psutil.Process().name())
    assert found.since == psutil.Process().create_time()
    assert not found.ours


def test_another_address_or_port_is_no_conflict(port: int):
    assert listeners("127.0.0.2", port, GCS) == []
    assert [one for one in listeners("127.0.0.1", port + 1, GCS) if one.pid == os.getpid()] == []


def test_a_worker_of_our_own_raylet_is_ours(port: int, monkeypatch: pytest.MonkeyPatch):
    class Raylet:
        def name(self) -> str:
            return "raylet"

        def cmdline(self) -> list[str]:
            return ["/ray/raylet", f"--gcs-address={GCS}", "--port=0"]

    monkeypatch.setattr(psutil.Process, "parents", lambda self: [Raylet()])
    assert listeners("127.0.0.1", port, GCS)[0].ours
    assert not listeners("127.0.0.1", port, "127.0.0.1:63790")[0].ours


def test_an_actor_of_ours_on_this_node_is_ours_whoever_started_it(monkeypatch: pytest.MonkeyPatch):
    actors = {"a": actor("here", 11), "b": actor("there", 12)}
    monkeypatch.setattr("ray._private.state.actors", lambda actor_state_name: actors)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    assert own_pids() == {11}


def actor(node: str, pid: int) -> dict[str, Any]:
    return {"Pid": pid, "Address": {"NodeID": node}}


@pytest.mark.parametrize(("pid", "taken"), [(11, False), (12, True)])
def test_a_port_is_taken_by_others_only(monkeypatch: pytest.MonkeyPatch, pid: int, taken: bool):
    config = SimpleNamespace(host="127.0.0.1", port=8000)
    context = SimpleNamespace(get_node_id=lambda: "here", gcs_address=GCS)
    monkeypatch.setattr(port_check, "_get_global_client", lambda **_: SimpleNamespace(http_config=config))
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(proxies={"here": "HEALTHY"}))
    monkeypatch.setattr(port_check, "listeners", lambda *_: [Listener(pid, "x", 1.0, False)])
    monkeypatch.setattr(port_check, "living_replicas", lambda: ["flux#Engine#a"])
    monkeypatch.setattr(port_check, "own_pids", lambda: {11})
    assert ("port 8000 is in use" in (port_check.check_port() or "")) == taken


def test_another_users_process_cannot_be_named(port: int, monkeypatch: pytest.MonkeyPatch):
    known = psutil.net_connections(kind="tcp")
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [one._replace(pid=None) for one in known])
    (found,) = listeners("127.0.0.1", port, GCS)
    assert (found.pid, found.ours) == (None, False)
    assert "another user" in found.name


def test_who_came_first_stays():
    ours, before, after = (Listener(pid, "x", since, pid == 2) for pid, since in ((2, 20.0), (1, 10.0), (3, 30.0)))
    assert intruders([ours, before, after]) == [before]
    assert intruders([ours, after]) == [], "a redeployment of the first service is not refused"
    assert intruders([ours]) == []
    assert intruders([before]) == [before], "our own proxy is not up yet"
