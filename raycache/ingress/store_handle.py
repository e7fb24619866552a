"""Typed calls to the store through Serve's untyped handle; raises the store's refusals as errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from ray.serve.exceptions import DeploymentUnavailableError

from raycache.ingress.asker import key_in_use
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.stored import JobKind, Order, Page, StoredJob
from raycache.ray_errors import DEATHS

__all__ = ["StoreClient", "StoreHandle"]

Answer = TypeVar("Answer")

#: Seconds for an answer: the store only reads and writes small files, but possibly in a shared folder.
_ANSWER_S = 30.0
#: Seconds until Serve has started another store.
_REPLACED_S = 3.0


class _Call(Awaitable[Any], Protocol):
    def cancel(self) -> None: ...


class _Method(Protocol):
    def remote(self, *args: Any) -> _Call: ...


class StoreHandle(Protocol):
    """The methods of :class:`raycache.store.store.Store`."""

    @property
    def submit(self) -> _Method: ...
    @property
    def find(self) -> _Method: ...
    @property
    def page(self) -> _Method: ...
    @property
    def delete(self) -> _Method: ...
    @property
    def read(self) -> _Method: ...


class StoreClient:
    """The store as the key in use sees it. Its methods raise :class:`RequestError`; 503 while it is being replaced."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle

    async def submit(self, kind: JobKind, request: GenerationRequest, notes: Sequence[str] = ()) -> StoredJob:
        """Store a new job; ``notes``: warnings to add to its result."""
        job: StoredJob = await _asked(self._handle.submit.remote(kind, request, key_in_use.get(), list(notes)))
        return job

    async def find(self, kind: JobKind, id: str) -> StoredJob:
        """The job and its state."""
        job: StoredJob = await _asked(self._handle.find.remote(kind, id, key_in_use.get()))
        return job

    async def page(self, kind: JobKind, after: str | None, limit: int, order: Order) -> Page:
        """Some jobs, by age."""
        page: Page = await _asked(self._handle.page.remote(kind, key_in_use.get(), after, limit, order))
        return page

    async def delete(self, kind: JobKind, id: str) -> StoredJob:
        """Delete a job; if it is running it is stopped."""
        job: StoredJob = await _asked(self._handle.delete.remote(kind, id, key_in_use.get()))
        return job

    async def read(self, kind: JobKind, id: str, what: str, start: int, length: int) -> bytes:
        """Part of a result."""
        data: bytes = await _asked(self._handle.read.remote(kind, id, key_in_use.get(), what, start, length))
        return data


async def _asked(call: _Call) -> Any:
    try:
        answer = await asyncio.wait_for(call, _ANSWER_S)
    except asyncio.CancelledError:
        call.cancel()
        raise
    except (TimeoutError, *DEATHS, DeploymentUnavailableError):
        call.cancel()  # otherwise the store has a job that no client knows of, and one more after each retry
        message = "the store does not answer: it is starting or being replaced; stored jobs continue once it is ready"
        raise unavailable(message, _REPLACED_S, "store_gone") from None
    if isinstance(answer, RequestError):
        raise answer
    return answer
