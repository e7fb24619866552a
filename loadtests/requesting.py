"""Sends one request and checks its answer."""

from __future__ import annotations

import base64
import binascii
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import requests
from PIL import Image

from loadtests.mix import Ask
from loadtests.records import Record, Recorder
from raycache.size import Size
from raycache.testing.inject import authorization

__all__ = ["PATH", "send"]

PATH = "/v1/images/generations"
_ABORTED = frozenset({"deadline_exceeded", "cancelled"})


def send(
    session: Any,
    ask: Ask,
    record: Record,
    recorder: Recorder,
    began: float,
    *,
    patience: float,
    leaves: bool,
    check: bool,
) -> None:
    """Send ``ask`` and fill in ``record``.

    Args:
        session: locust's HTTP client of a user; its statistics get the latency from the intended start.
        began: ``time.monotonic()`` at the run's start.
        patience: seconds until this client hangs up.
        leaves: whether it hangs up on purpose, which is then not an error.
        check: also check the images.
    """
    record.sent = time.monotonic() - began
    name = f"{ask.body['size']} {ask.body.get('num_inference_steps', '')} steps" + (" stream" if ask.stream else "")
    with session.post(
        PATH,
        json=ask.body,
        headers=authorization(),
        name=name,
        catch_response=True,
        stream=ask.stream,
        timeout=(10, patience),
    ) as response:
        record.status, record.streamed = response.status_code or 0, ask.stream
        try:
            if record.status == 200:
                reply = _last_event(response, record, began, patience) if ask.stream else response.json()
                _judge(ask, reply, record, recorder, check)
            elif record.status:
                _refused(response, record)
            else:
                raise requests.ConnectionError(str(response.error))
        except (requests.RequestException, TimeoutError, ValueError, KeyError) as error:
            hung_up = isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error)
            record.outcome = "abandoned" if leaves and hung_up else "failed"
            record.cause = "" if leaves and hung_up else type(error).__name__
        record.ended = time.monotonic() - began
        _count(response, record)
    recorder.add(record)


def _count(response: Any, record: Record) -> None:
    """Add the request to locust's statistics."""
    response.request_meta["response_time"] = 1000 * record.latency
    if record.outcome in ("done", "abandoned"):
        response.success()
    else:
        response.failure(f"{record.outcome}: {record.cause}")


def _refused(response: Any, record: Record) -> None:
    try:
        record.cause = str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        record.cause = f"http_{record.status}"
    if record.cause in _ABORTED or record.status == 504:
        record.outcome = "aborted"
    elif record.status in (429, 503):
        # A refusal must say when to come back.
        record.outcome = "refused" if "retry-after" in response.headers else "wrong"
    else:
        record.outcome = "failed"


def _last_event(response: Any, record: Record, began: float, patience: float) -> dict[str, Any]:
    """The event that carries the image; the times of the first event and the first preview on the way."""
    give_up = record.sent + patience
    for event in _events(response):
        now = time.monotonic() - began
        if now > give_up:
            response.close()
            raise TimeoutError("this client left")
        if record.first_event is None:
            record.first_event = now - record.sent
        kind = event.get("type")
        if kind == "image_generation.partial_image" and record.first_preview is None:
            record.first_preview = now - record.sent
        if kind == "image_generation.completed":
            return {"data": [{"b64_json": event["b64_json"]}], **event}
        if kind == "error" or "error" in event:
            raise ValueError(f"stream ended: {event}")
    raise ValueError("the stream ended without an image")


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
            yield json.loads(line[5:])


def _judge(ask: Ask, reply: dict[str, Any], record: Record, recorder: Recorder, check: bool) -> None:
    record.outcome = "done"
    record.images = len(reply["data"])
    for stage, seconds in (reply.get("times") or {}).items():
        setattr(record, stage, seconds)
    if reply.get("report"):
        shares = reply["report"]["totals"]["computed_block_fraction"]
        record.computed = sum(shares) / len(shares)
    try:
        images = [base64.b64decode(item["b64_json"], validate=True) for item in reply["data"]]
        if check:
            record.checked = True
            sizes = {Size(*Image.open(io.BytesIO(image)).size) for image in images}
            if sizes != {ask.size} or record.images != ask.body.get("n", 1):
                record.outcome, record.cause = "wrong", "size"
                return
        if not recorder.same_as_before(ask.kind, ask.seed, images):
            record.outcome, record.cause = "wrong", "pixels"
    except (binascii.Error, OSError):
        record.outcome, record.cause = "wrong", "undecodable"
