"""Requests one image from a running service as a stream of events."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
from rich.progress import Progress, TaskID

from raycache.command.drawn import Drawn
from raycache.command.telling import USAGE

__all__ = ["ServiceError", "ask", "events_in", "is_service"]

#: Seconds within which a service on this machine answers.
_LOOK_S = 2.0


class ServiceError(RuntimeError):
    """The request failed; the message has the service's reason.

    Attributes:
        code: exit code of the command.
    """

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.code = code


def is_service(url: str) -> bool:
    """Whether a raycache service at this address is ready."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=_LOOK_S)
        return bool(answer.json()["ready"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return False


def ask(url: str, request: dict[str, Any], bar: Progress, task: TaskID) -> Drawn:
    """Request one image.

    Args:
        url: address of the service, with its prefix.
        request: body of ``POST /v1/images/generations``.
        bar, task: shows its steps.

    Raises:
        ServiceError: no service answers there, the request was refused, or it failed.
    """
    key = os.environ.get("RAYCACHE_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    bar.update(task, description=f"asking {url}")
    timeout = httpx.Timeout(60, connect=10)  # a stream sends at least a comment every 10 s
    try:
        with httpx.stream(
            "POST", f"{url}/v1/images/generations", json={**request, "stream": True}, headers=headers, timeout=timeout
        ) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _refused(url, answer)
            for event in events_in(answer.iter_lines()):
                if event["type"] == "raycache.progress":
                    bar.update(task, description="drawing", completed=event["step"], total=event["steps"])
                elif event["type"] == "raycache.queued":
                    bar.update(task, description=f"waiting, {event['ahead']} before it")
                elif event["type"] == "error":
                    raise ServiceError(f"{url}: {event['error']['message']}")
                elif event["type"].endswith(".completed"):
                    return _drawn(url, event)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(f"no service answers at {url}: {error}; `raycache serve` starts one") from None
    raise ServiceError(f"{url}: the stream ended without an image")


def _drawn(url: str, event: dict[str, Any]) -> Drawn:
    seconds = sum(event["times"].values())
    report = event.get("report")  # none without a cache
    return Drawn(
        image=base64.b64decode(event["b64_json"]),
        line=f"{event['size']}, seed {event['seed']}, {seconds:.1f} s at {url}",
        warnings=event["warnings"],
        seconds=seconds - event["times"].get("queue", 0.0),
        computed_share=report["totals"]["computed_block_fraction"][0] if report else 1.0,
    )


def events_in(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The data of server-sent events; comments are skipped."""
    for line in lines:
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


def _refused(url: str, answer: httpx.Response) -> ServiceError:
    try:
        reason = str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        reason = answer.text[:200]
    hint = "; set RAYCACHE_API_KEY" if answer.status_code == 401 else ""
    wrong_request = answer.status_code in (400, 401, 403, 404, 413, 422)
    return ServiceError(f"{url} refused ({answer.status_code}): {reason}{hint}", USAGE if wrong_request else 1)
