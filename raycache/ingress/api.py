"""HTTP: OpenAI's images API plus our fields. Every error, of the framework too, has OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from raycache.ingress.cors import CorsFastAPI
from raycache.ingress.dependencies import Context, Service
from raycache.ingress.routes import health, images, jobs, models, playground, videos
from raycache.ingress.sse import Events
from raycache.ingress.store_handle import StoreClient
from raycache.metrics import IngressMetrics
from raycache.protocol.errors import RequestError, internal_error
from raycache.protocol.schemas import GenerationRequest

__all__ = ["build_http_app"]


def build_http_app(
    service: Service,
    stream: Callable[[GenerationRequest], Events] | None = None,
    store: StoreClient | None = None,
) -> FastAPI:
    """Build the HTTP application for ``service``.

    Args:
        service: generates images.
        stream: streams; default: the service's ``generate_stream``.
        store: stores jobs, if there is a store.
    """
    app = _App(service.settings.ingress.cors_origins, title="raycache", version=version("raycache"), redoc_url=None)
    app.state.context = Context(service, stream or service.generate_stream, store)
    _answer_errors(app, service.metrics)
    for routes in (images, videos, jobs, models, health):
        app.include_router(routes.router)
    if service.settings.ingress.playground:
        app.include_router(playground.router)
    return app


def _answer_errors(app: FastAPI, metrics: IngressMetrics) -> None:
    """Answer our own errors, the framework's and unexpected ones in the same shape, and count them."""

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
        """FastAPI's document, with the definitions that the schemas of bodies refer to among its components."""
        document = super().openapi()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            for content in operation.get("requestBody", {}).get("content", {}).values():
                components.update(content["schema"].pop("$defs", {}))
        return document
