"""Faults from outside: signals to the processes that a running service lists in ``/readyz``. Linux, same machine."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx

__all__ = [
    "authorization",
    "engines",
    "engines_now",
    "kill_engine",
    "kill_ingress",
    "kill_rank",
    "rank_pids",
    "readiness",
    "wait_for",
]


def authorization() -> dict[str, str]:
    """The header for a service with keys, from ``RAYCACHE_API_KEY``; empty if that is not set."""
    key = os.environ.get("RAYCACHE_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def readiness(url: str, timeout_s: float = 5.0) -> dict[str, Any]:
    """The JSON of ``/readyz`` of the service at ``url``, whether it is ready or not; empty if it does not answer."""
    try:
        said: dict[str, Any] = _client().get(f"{url}/readyz", headers=authorization(), timeout=timeout_s).json()
    except (httpx.HTTPError, ValueError):  # ValueError: Serve's own text, before the application is ready
        return {}
    return said


def engines(url: str) -> list[dict[str, Any]]:
    """Every engine that answers, in order of its replica's name, so that indices are stable."""
    return sorted(readiness(url).get("engines", []), key=lambda engine: engine["replica"])


def engines_now(url: str, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """Like :func:`engines`, but with statuses from after this call started.

    Raises:
        TimeoutError: no engine answered within ``timeout_s`` seconds.
    """
    began = time.time()

    def told() -> list[dict[str, Any]]:
        known = engines(url)
        return known if all(engine["told_at"] > began for engine in known) else []

    return wait_for(told, timeout_s)


def rank_pids(url: str) -> list[int]:
    """Process ids of all ranks of all engines."""
    return [rank["pid"] for engine in engines(url) for rank in engine["gang"]["ranks"] if "pid" in rank]


def kill_rank(url: str, rank: int, engine: int = 0) -> float:
    """Send SIGKILL; returns its ``time.time()``."""
    return _signal(_rank(url, rank, engine), signal.SIGKILL)


def kill_engine(url: str, engine: int = 0) -> float:
    """Send SIGKILL to an engine's replica; its ranks die with it. Returns its ``time.time()``."""
    return _signal(engines_now(url)[engine]["pid"], signal.SIGKILL)


def kill_ingress(url: str) -> float:
    """Send SIGKILL to the ingress replica that answers. Returns its ``time.time()``."""
    return _signal(readiness(url)["pid"], signal.SIGKILL)


def wait_for(what: Callable[[], Any], timeout_s: float = 120.0, every_s: float = 0.1) -> Any:
    """The first truthy value of ``what()``.

    Raises:
        TimeoutError: there was none within ``timeout_s`` seconds.
    """
    end = time.monotonic() + timeout_s
    while not (value := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {getattr(what, '__name__', what)}")
        time.sleep(every_s)
    return value


@functools.cache
def _client() -> httpx.Client:
    """One client for all calls: it takes 50 ms of CPU to create. One connection per call: its peer may die."""
    return httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))


def _rank(url: str, rank: int, engine: int) -> int:
    return engines_now(url)[engine]["gang"]["ranks"][rank]["pid"]


def _signal(pid: int, what: signal.Signals) -> float:
    at = time.time()
    os.kill(pid, what)
    return at
