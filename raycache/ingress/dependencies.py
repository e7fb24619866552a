"""Dependencies of routes: the service behind them, a valid key, a body of the route's type."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar

import pydantic_core
from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError

from raycache.front.bodies import Bodies, read_body, upload_bodies
from raycache.ingress.asker import key_in_use
from raycache.ingress.auth import check_key
from raycache.ingress.image_room import ImageRoom
from raycache.ingress.sse import Events
from raycache.ingress.store_handle import StoreClient
from raycache.limits import LimitSettings
from raycache.metrics import IngressMetrics
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, from_validation_error, invalid
from raycache.protocol.model_cards import ModelCard
from raycache.protocol.schemas import EngineStatus, GenerationRequest, GenerationResult
from raycache.settings import ServiceSettings

__all__ = ["Context", "InContext", "InStore", "Service", "body_document", "context_of", "json_body", "parse_body"]
__all__ += ["parse_fields", "require_key"]

#: Seconds that a client has to send its body: one that never ends would take up a place in the ingress.
_BODY_S = 30.0

Body = TypeVar("Body", bound=BaseModel)


class Service(Protocol):
    """The interface that the routes need, such as :class:`raycache.ingress.ingress.Ingress`."""

    settings: ServiceSettings
    metrics: IngressMetrics

    @property
    def keys(self) -> Sequence[bytes]: ...
    @property
    def max_body_bytes(self) -> int: ...
    @property
    def max_upload_bytes(self) -> int: ...
    @property
    def shortage(self) -> str | None: ...
    @property
    def ready_in_s(self) -> float: ...
    @property
    def asleep(self) -> bool: ...
    def longest_timeout_s(self, model: str | None) -> float: ...
    def limits_of(self, model: str | None) -> LimitSettings: ...
    def capabilities_of(self, model: str | None) -> Capabilities | None: ...
    async def generate(self, request: GenerationRequest) -> GenerationResult: ...
    def generate_stream(self, request: GenerationRequest) -> Events: ...
    async def status(self) -> list[EngineStatus]: ...
    async def models(self) -> list[ModelCard]: ...


@dataclass(frozen=True)
class Context:
    """Shared by the routes of one application.

    Attributes:
        service: generates images.
        stream: streams events.
        store: stores jobs, if there is a store.
        bodies: the bodies being read.
        uploads: the bodies being read that may contain images.
        images: limits for decoding the images in them.
        began: ``time.time()`` at the start, in whole seconds.
    """

    service: Service
    stream: Callable[[GenerationRequest], Events]
    store: StoreClient | None = None
    bodies: Bodies = field(default_factory=Bodies)
    uploads: Bodies = field(default_factory=upload_bodies)
    images: ImageRoom = field(default_factory=ImageRoom)
    began: int = field(default_factory=lambda: int(time.time()))


# Coroutines although they never wait: FastAPI runs plain functions in threads, where context variables that they
# set are lost.


async def context_of(http: Request) -> Context:
    """The context of the application that got this request."""
    context: Context = http.app.state.context
    return context


InContext = Annotated[Context, Depends(context_of)]


async def store_of(context: InContext) -> StoreClient:
    """The store behind this application.

    Raises:
        RequestError: 404 if there is none.
    """
    if context.store is None:
        raise RequestError(404, "this service stores no jobs; its operator can set `store.folder`", None, "no_store")
    return context.store


InStore = Annotated[StoreClient, Depends(store_of)]


async def require_key(http: Request, context: InContext) -> None:
    """Check the key, and remember its name.

    Raises:
        RequestError: 401 if keys are set and the request has none of them.
    """
    key_in_use.set(check_key(context.service.keys, http.headers.get("authorization")))


def json_body(model: type[Body]) -> Callable[[Request, Context], Awaitable[Body]]:
    """A dependency: the request's body as a ``model``, read within the bounds of size and time.

    It raises what :func:`raycache.front.bodies.read_body` and :func:`parse_body` raise. The route says
    ``openapi_extra=body_document(model)``, too: FastAPI documents the bodies that it reads by itself only.
    """

    async def read(http: Request, context: InContext) -> Body:
        return parse_body(model, await read_body(http, context.service.max_body_bytes, _BODY_S, context.bodies))

    return read


def parse_body(model: type[Body], body: bytes) -> Body:
    """Strict JSON to a ``model``; a field that is null counts as not given, as OpenAI's clients send it.

    Raises:
        RequestError: 400.
    """
    try:
        fields = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(None, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise invalid(None, "the body must be a JSON object", code="invalid_json")
    return parse_fields(model, fields)


def parse_fields(model: type[Body], fields: dict[str, Any]) -> Body:
    """As :func:`parse_body`, from the fields of a JSON object.

    Raises:
        RequestError: 400.
    """
    # As JSON again: strict validation of Python objects refuses lists for tuples, and its messages name Python types.
    given = pydantic_core.to_json({name: value for name, value in fields.items() if value is not None})
    try:
        return model.model_validate_json(given, strict=True)
    except ValidationError as error:
        raise from_validation_error(error, model.model_fields) from None


def body_document(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body: a ``model`` as JSON.

    References to its ``$defs`` point to components; the application moves them there.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
