"""Checks which process uses a port. Serve's proxies listen with SO_REUSEPORT, so a second service on a port silently
takes half of the connections of the first. The builder checks this, and the later service ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, replace

import psutil
import ray
from ray import serve
from ray._private.services import get_node_ip_address
from ray.serve.context import _get_global_client

__all__ = ["Listener", "check_port", "intruders", "listeners", "living_replicas"]

logger = logging.getLogger("ray.serve")

_WILDCARDS = ("", "0.0.0.0", "::")
#: Prefix of Serve's names for replicas' actors.
_REPLICA = "SERVE_REPLICA::"
#: Seconds for the log line to reach the terminal of the `serve run` that is about to end.
_TELL_S = 2.0


@dataclass(frozen=True)
class Listener:
    """A process that accepts connections on the port.

    Attributes:
        pid: None where the system does not tell, as of another user's process.
        name: name of the process.
        since: when it started, as ``time.time()``.
        ours: whether it belongs to this Ray cluster.
    """

    pid: int | None
    name: str
    since: float
    ours: bool


def check_port() -> str | None:
    """Why Serve must not listen on its port here: another process does. None if the port is ours.

    If so, a Serve without applications releases the port, and a waiting `serve run` is ended.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None or ray.get_runtime_context().get_node_id() not in serve.status().proxies:
        return None
    config = client.http_config
    there = listeners(config.host or "127.0.0.1", config.port, ray.get_runtime_context().gcs_address)
    own = own_pids() if intruders(there) else set()
    found = intruders([replace(it, ours=it.ours or it.pid in own) for it in there])
    if not found:
        return None
    who = ", ".join(f"{it.name} (pid {it.pid or 'unknown'}, since {time.ctime(it.since)})" for it in found)
    problem = f"port {config.port} is in use: {who} listens on it. Stop it, or set another `http_options.port`"
    if not living_replicas():
        print(f"Not served: {problem}", file=sys.stderr, flush=True)
        time.sleep(_TELL_S)
        client._controller.graceful_shutdown.remote(wait=False)
        _end_serve_run()
    return problem


def own_pids() -> set[int]:
    """Processes of this cluster's actors on this node, however they were started: with a ``py_executable`` in a runtime
    environment they need not be descendants of the raylet.
    """
    here, actors = ray.get_runtime_context().get_node_id(), ray._private.state.actors(actor_state_name="ALIVE").values()
    return {actor["Pid"] for actor in actors if actor["Address"]["NodeID"] == here}


def living_replicas() -> list[str]:
    """Names (``app#deployment#id``) of the replicas of this cluster whose process is alive.

    Serve's status knows no deployments of an application while it is being built.
    """
    actors = ray._private.state.actors(actor_state_name="ALIVE").values()
    return [actor["Name"].removeprefix(_REPLICA) for actor in actors if actor["Name"].startswith(_REPLICA)]


def intruders(found: list[Listener]) -> list[Listener]:
    """The listeners of other clusters that started before ours."""
    since = min((it.since for it in found if it.ours), default=float("inf"))
    return [it for it in found if not it.ours and it.since < since]


def listeners(host: str, port: int, gcs_address: str) -> list[Listener]:
    """The processes on this machine that accept TCP connections to ``host:port``."""
    found = {}
    for connection in psutil.net_connections(kind="tcp"):
        if not connection.laddr or connection.status != psutil.CONN_LISTEN or connection.laddr.port != port:
            continue
        if connection.laddr.ip == host or {connection.laddr.ip, host} & set(_WILDCARDS):
            found[connection.pid] = _listener(connection.pid, gcs_address)
    return list(found.values())


def _listener(pid: int | None, gcs_address: str) -> Listener:
    try:
        process = psutil.Process(pid) if pid else None
        if process is None:
            return Listener(None, "a process of another user", 0.0, False)
        words = " ".join(process.cmdline())[:120] or process.name()
        return Listener(pid, words, process.create_time(), _in_cluster(process, gcs_address))
    except psutil.Error:
        return Listener(pid, "a process", 0.0, False)


def _in_cluster(process: psutil.Process, gcs_address: str) -> bool:
    """Whether the process, a child of its node's raylet, belongs to the cluster with this GCS address."""
    for parent in process.parents():
        with contextlib.suppress(psutil.Error):
            if parent.name() == "raylet" and any(word.endswith(f"={gcs_address}") for word in parent.cmdline()):
                return True
    return False


def _end_serve_run() -> None:
    """End the `serve run` on this node that started this Serve: it would wait forever."""
    job, here = ray.get_runtime_context().get_job_id(), get_node_ip_address()
    for driver in ray._private.state.jobs():
        there = driver["DriverIPAddress"] == here and driver["DriverPid"] != os.getpid()
        if driver["JobID"] != job or driver["IsDead"] or not there:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            words = [os.path.basename(word) for word in psutil.Process(driver["DriverPid"]).cmdline()]
            if "serve" in words and "run" in words:
                os.kill(driver["DriverPid"], signal.SIGTERM)
