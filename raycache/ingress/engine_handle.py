"""Typed calls to the engines through Serve's untyped handle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    ResolvedRequest,
)

__all__ = ["EngineEvent", "EngineHandle"]

Answer_co = TypeVar("Answer_co", covariant=True)

#: The events of an engine's stream; the last is a result or an error.
EngineEvent = QueuedEvent | ProgressEvent | PreviewEvent | GenerationResult | RequestError


class Answering(Awaitable[Answer_co], Protocol[Answer_co]):
    """A pending answer (``DeploymentResponse``)."""

    def cancel(self) -> None: ...


class Telling(Protocol):
    """An open stream (``DeploymentResponseGenerator``)."""

    def __aiter__(self) -> AsyncIterator[EngineEvent]: ...
    def __anext__(self) -> Awaitable[EngineEvent]: ...
    def cancel(self) -> None: ...


class _AllAnswers(Protocol):
    async def results_async(self, *, timeout_s: float | None, return_exceptions: bool) -> list[Any]: ...


class _Generate(Protocol):
    def remote(
        self, order: ResolvedRequest, caller: str | None, /, **who: str
    ) -> Answering[GenerationResult | RequestError]: ...


class _GenerateStream(Protocol):
    def remote(self, order: ResolvedRequest, caller: str | None, /, **who: str) -> Telling: ...


class _Poll(Protocol):
    def remote(self, ingress_id: str | None, /) -> Awaitable[EngineStatus]: ...


class _StreamingHandle(Protocol):
    @property
    def generate_stream(self) -> _GenerateStream: ...


class EngineHandle(Protocol):
    """The methods of :class:`raycache.engine.engine.Engine` that an ingress calls."""

    @property
    def generate(self) -> _Generate: ...
    @property
    def poll(self) -> _Poll: ...
    def options(self, *, stream: bool) -> _StreamingHandle: ...
    def broadcast(self, method_name: str, caller: str | None, /) -> _AllAnswers: ...
