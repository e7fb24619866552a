"""The store deployment: one replica that keeps jobs and runs them, independent of clients' connections.

It sends requests to engines like an ingress, in its own name, with leases, deadlines and a second engine after a loss.
So a job depends on neither a connection nor an ingress. Errors that are answers are *returned*, like the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from raycache.cluster.capacity import Bundle
from raycache.ingress.engine_handle import EngineHandle
from raycache.ingress.engine_pools import EnginePools
from raycache.metrics import IngressMetrics
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import GenerationRequest
from raycache.protocol.stored import JobKind, Order, Page, StoredJob
from raycache.settings import ServiceSettings
from raycache.store.job_store import JobStore
from raycache.store_metrics import StoreMetrics

__all__ = ["Store"]

T = TypeVar("T")


class Store:
    """The deployment around a :class:`JobStore`: errors are returned as values.

    Args:
        settings: the application's, with a store.
        engines: by model name, the handle of its engines' deployment.
        bundles: by model name, the resources that one engine needs of the cluster.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        engines: Mapping[str, EngineHandle],
        bundles: Mapping[str, Sequence[Bundle]],
    ) -> None:
        assert settings.store is not None  # the builder makes a store only from such settings
        store = settings.store
        pools = EnginePools(settings, engines, bundles, IngressMetrics(), store.longest_timeout_s)
        self._watching = asyncio.get_running_loop().create_task(pools.run())
        self._store = JobStore(store, pools, StoreMetrics(one.model.name for one in settings.engines))

    async def submit(
        self, kind: JobKind, request: GenerationRequest, key: str | None, notes: Sequence[str] = ()
    ) -> StoredJob | RequestError:
        """See :meth:`JobStore.submit`."""
        return await _answer(self._store.submit(kind, request, key, notes))

    async def find(self, kind: JobKind, id: str, key: str | None) -> StoredJob | RequestError:
        """See :meth:`JobStore.find`."""
        try:
            return self._store.find(kind, id, key)
        except RequestError as error:
            return error

    async def page(
        self, kind: JobKind, key: str | None, after: str | None, limit: int, order: Order
    ) -> Page | RequestError:
        """See :meth:`JobStore.page`."""
        try:
            return self._store.page(kind, key, after, limit, order)
        except RequestError as error:
            return error

    async def delete(self, kind: JobKind, id: str, key: str | None) -> StoredJob | RequestError:
        """See :meth:`JobStore.delete`."""
        return await _answer(self._store.delete(kind, id, key))

    async def read(
        self, kind: JobKind, id: str, key: str | None, what: str, start: int, length: int
    ) -> bytes | RequestError:
        """See :meth:`JobStore.read`."""
        return await _answer(self._store.read(kind, id, key, what, start, length))

    async def check_health(self) -> None:
        """Raises if it has stopped, so that Serve replaces it."""
        self._store.check_health()

    def __del__(self) -> None:
        if store := getattr(self, "_store", None):
            store.close()


async def _answer(call: Awaitable[T]) -> T | RequestError:
    try:
        return await call
    except RequestError as error:
        return error
