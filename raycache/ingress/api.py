"""HTTP: OpenAI's images API plus our fields. Every error, of the framework too, has OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Protocol

import pydantic_core
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from raycache.front.bodies import Bodies, read_body
from raycache.ingress.asker import key_in_use
from raycache.ingress.auth import check_key, has_key
from raycache.ingress.cors import CorsFastAPI
from raycache.ingress.headers import wanted_media, with_header_timeout
from raycache.ingress.sse import Events, begin, keep_alive, stream_events
from raycache.metrics import IngressMetrics
from raycache.protocol.errors import RequestError, from_validation_error, internal_error, invalid
from raycache.protocol.formats import MEDIA_TYPES, encode
from raycache.protocol.resolve import check_model
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationRequest,
    GenerationResult,
    ImagesBody,
)
from raycache.settings import AppSettings

logger = logging.getLogger("ray.serve")

#: Seconds a client has to send its body: who never ends keeps a place in the ingress from those who do.
_BODY_S = 30.0
#: Seconds after which a stream says something, whatever the engine does: proxies cut a line that is silent for 60.
_COMMENT_S = 10.0
#: Seconds for which a refusal can still be a status: an engine that must be woken decides only minutes later.
_UNDECIDED_S = 30.0


class Service(Protocol):
    """What the routes need; :class:`raycache.ingress.ingress.Ingress` is one."""

    settings: AppSettings
    metrics: IngressMetrics

    @property
    def keys(self) -> Sequence[bytes]: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def max_timeout_s(self) -> float: ...
    @property
    def shortage(self) -> str | None: ...
    @property
    def ready_in_s(self) -> float: ...
    @property
    def asleep(self) -> bool: ...
    async def generate(self, request: GenerationRequest) -> GenerationResult: ...
    def generate_stream(self, request: GenerationRequest) -> Events: ...
    async def status(self) -> list[EngineStatus]: ...


def build_http_app(service: Service, stream: Callable[[GenerationRequest], Events] | None = None) -> FastAPI:
    """The routes over ``service``.

    Args:
        service: what generates.
        stream: what streams; the service's ``generate_stream`` if not given.
    """
    stream = stream or service.generate_stream
    bodies = Bodies()
    app = _App(service.settings.ingress.cors_origins, title="raycache", redoc_url=None)
    _answer_errors(app, service.metrics)
    began = int(time.time())

    @app.post("/v1/images/generations")
    async def generate(http: Request) -> Response:
        """Generate images."""
        key_in_use.set(check_key(service.keys, http.headers.get("authorization")))
        body = parse_body(await read_body(http, service.max_body_bytes, _BODY_S, bodies))
        raw = wanted_media(http.headers, body)
        request = with_header_timeout(body.request(), http.headers, service.max_timeout_s)
        if raw:
            request = request.model_copy(update={"output_format": raw})
        if body.stream:
            return await _stream(stream(request), service.metrics, body)
        result = await service.generate(request)
        result.warnings[:0] = body.ignored()
        format = request.output_format
        pictures = await asyncio.gather(
            *(asyncio.to_thread(encode, image, format, body.output_compression) for image in result.images)
        )
        if raw:
            return Response(pictures[0], media_type=MEDIA_TYPES[raw], headers=_result_headers(result))
        return JSONResponse(reply(result, pictures, body.output_format))

    @app.get("/v1/models")
    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models/", include_in_schema=False)
    async def models(http: Request) -> dict[str, Any]:
        """The one model of this service."""
        check_key(service.keys, http.headers.get("authorization"))
        return {"object": "list", "data": [_model(service, began)]}

    @app.get("/v1/models/{model:path}")
    async def model(http: Request, model: str) -> dict[str, Any]:
        """This service's model, if it is the one that was asked for."""
        check_key(service.keys, http.headers.get("authorization"))
        check_model(model, service.settings.model.name)
        return _model(service, began)

    @app.get("/healthz")
    @app.head("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """The ingress lives; says nothing about engines."""
        return {"status": "ok"}

    @app.get("/readyz")
    @app.head("/readyz", include_in_schema=False)
    async def readyz(http: Request) -> JSONResponse:
        """200 while a request would be served: an engine with a warm gang serves, or all sleep and one may be woken.

        Else 503; either way with what every engine says of itself, told to holders of a key where there are keys.
        """
        statuses = await service.status()
        ready = service.asleep or any(status.ready for status in statuses)
        engines = [{key: value for key, value in asdict(s).items() if key != "policy"} for s in statuses]
        reason = "asleep" if service.asleep else None if ready else service.shortage or "starting"
        content = {"ready": ready, "reason": reason, "pid": os.getpid(), "engines": engines}
        if not has_key(service.keys, http.headers.get("authorization")):
            content = {"ready": ready, "reason": reason}
        return JSONResponse(
            content, 200 if ready else 503, None if ready else {"retry-after": str(math.ceil(service.ready_in_s))}
        )

    return app


def parse_body(body: bytes) -> ImagesBody:
    """Strict JSON to a request; a field that is null counts as not given, as OpenAI's clients send it.

    Raises:
        RequestError: 400.
    """
    try:
        fields = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(None, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid(None, "the body must be a JSON object", code="invalid_json")
    if fields.get("response_format") == "url":
        raise invalid("response_format", "this server keeps no files that a url could name", ["b64_json"])
    given = pydantic_core.to_json({name: value for name, value in fields.items() if value is not None})
    try:
        return ImagesBody.model_validate_json(given, strict=True)
    except ValidationError as error:
        raise from_validation_error(error, ImagesBody.model_fields) from None


def reply(result: GenerationResult, pictures: list[bytes], output_format: str) -> dict[str, Any]:
    """OpenAI's ``ImagesResponse`` with our report, times, seeds and warnings."""
    height, width = result.images[0].shape[:2]
    return {
        "created": int(time.time()),
        "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures],
        "output_format": output_format,
        "size": f"{width}x{height}",
        "seeds": result.seeds,
        "times": {stage: round(seconds, 4) for stage, seconds in result.times.model_dump().items()},
        "report": result.report,
        "warnings": result.warnings,
    }


async def _stream(events: Events, metrics: IngressMetrics, body: ImagesBody) -> Response:
    try:
        # A refusal must be a status code, not an event: it is out before the first event.
        first, rest = await begin(events, _UNDECIDED_S)
    except StopAsyncIteration:
        raise RequestError(500, "the engine ended the stream without a picture", None, "job_failed") from None
    texts = keep_alive(stream_events(first, rest, body, metrics.answered), _COMMENT_S)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(texts, media_type="text/event-stream", headers=headers)


def _model(service: Service, began: int) -> dict[str, Any]:
    return {"id": service.settings.model.name, "object": "model", "created": began, "owned_by": "raycache"}


def _result_headers(result: GenerationResult) -> dict[str, str]:
    times = ", ".join(f"{stage};dur={1000 * s:.1f}" for stage, s in result.times.model_dump().items())
    return {"server-timing": times, "x-seed": str(result.seeds[0])}


def _answer_errors(app: FastAPI, metrics: IngressMetrics) -> None:
    """Errors of ours, of the framework and of nobody's intention: one shape, and all are counted."""

    def answer(error: RequestError, headers: Mapping[str, str] | None = None) -> JSONResponse:
        metrics.answered(error)
        return JSONResponse(error.body(), error.status, {**error.headers(), **(headers or {})})

    @app.exception_handler(RequestError)
    async def ours(http: Request, error: RequestError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def frameworks(http: Request, error: HTTPException) -> JSONResponse:
        message = f"{http.method} {http.url.path[:200]}: {error.detail}"
        return answer(RequestError(error.status_code, message, None, "http_error"), error.headers)

    @app.exception_handler(Exception)
    async def bug(http: Request, error: Exception) -> JSONResponse:
        return answer(internal_error())  # the cause is logged by Serve


class _App(CorsFastAPI):
    def openapi(self) -> dict[str, Any]:
        """FastAPI's document plus the body it cannot see, because :func:`read_body` reads it."""
        if self.openapi_schema is None:
            document = get_openapi(title=self.title, version=version("raycache"), routes=self.routes)
            schema = ImagesBody.model_json_schema(ref_template="#/components/schemas/{model}")
            document.setdefault("components", {}).setdefault("schemas", {}).update(schema.pop("$defs"))
            body = {"required": True, "content": {"application/json": {"schema": schema}}}
            document["paths"]["/v1/images/generations"]["post"]["requestBody"] = body
            self.openapi_schema = document
        return self.openapi_schema
