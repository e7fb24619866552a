"""From a body to its reply: JSON, the bytes of one image, or a stream of events."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from raycache.ingress.dependencies import Context
from raycache.ingress.headers import wanted_media, wants_later, with_header_timeout
from raycache.ingress.jobs import job_told
from raycache.ingress.sse import Events, begin, keep_alive, stream_events
from raycache.metrics import IngressMetrics
from raycache.protocol.bodies import ImagesBody
from raycache.protocol.errors import RequestError, invalid
from raycache.protocol.formats import MEDIA_TYPES, encode
from raycache.protocol.schemas import GenerationRequest, GenerationResult
from raycache.size import Size

__all__ = ["drawn", "reply", "told_of"]

#: Seconds after which a stream sends a comment: proxies close a connection that is silent for 60.
_COMMENT_S = 10.0
#: Seconds during which a refusal can still be a status: an engine that must start decides only minutes later.
_UNDECIDED_S = 30.0


async def drawn(
    http: Request, body: ImagesBody, context: Context, request: GenerationRequest | None = None
) -> Response:
    """Generate ``body``'s images, in the form that it and the headers request.

    Args:
        request: the request, if the body alone does not determine it: it has the decoded input images.

    Raises:
        RequestError: refused, aborted or failed before the status was sent.
    """
    if wants_later(http.headers, body):
        return await _kept(body, request or body.request(), context)
    service = context.service
    raw = wanted_media(http.headers, body)
    request = with_header_timeout(request or body.request(), http.headers, service.longest_timeout_s(body.model))
    if raw:
        request = request.model_copy(update={"output_format": raw})
    if body.stream:
        return await _stream(context.stream(request), service.metrics, body)
    result = await service.generate(request)
    result.warnings[:0] = body.ignored()
    format = request.output_format
    images = await asyncio.gather(
        *(asyncio.to_thread(encode, image, format, body.output_compression) for image in result.images)
    )
    if raw:
        return Response(images[0], media_type=MEDIA_TYPES[raw], headers=_result_headers(result))
    return JSONResponse(reply(result, images, body.output_format))


async def _kept(body: ImagesBody, request: GenerationRequest, context: Context) -> Response:
    """202 with the address of the job, without waiting for it."""
    if context.store is None:
        reason = "`respond-async` requests a stored job, but this service stores none; leave the header out"
        raise invalid("prefer", reason, code="no_store")
    job = await context.store.submit("image", request, body.ignored())
    headers = {"location": f"/v1/jobs/{job.id}", "preference-applied": "respond-async"}
    return JSONResponse(job_told(job), 202, headers)


def reply(result: GenerationResult, images: list[bytes], output_format: str) -> dict[str, Any]:
    """OpenAI's ``ImagesResponse`` with our report, times, seeds and warnings."""
    return {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(image).decode()} for image in images],
        "output_format": output_format,
        "size": str(Size.of(result.images[0])),
        **told_of(result),
    }


def told_of(result: GenerationResult) -> dict[str, Any]:
    """The fields of a reply other than its images."""
    return {
        "seeds": result.seeds,
        "times": {stage: round(seconds, 4) for stage, seconds in result.times.model_dump().items()},
        "report": result.report,
        "warnings": result.warnings,
    }


async def _stream(events: Events, metrics: IngressMetrics, body: ImagesBody) -> Response:
    try:
        # A refusal must be a status code, not an event: the status is sent before the first event.
        first, rest = await begin(events, _UNDECIDED_S)
    except StopAsyncIteration:
        raise RequestError(500, "the engine ended the stream without an image", None, "job_failed") from None
    texts = keep_alive(stream_events(first, rest, body, metrics.answered), _COMMENT_S)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(texts, media_type="text/event-stream", headers=headers)


def _result_headers(result: GenerationResult) -> dict[str, str]:
    times = ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in result.times.model_dump().items())
    return {"server-timing": times, "x-seed": str(result.seeds[0])}
