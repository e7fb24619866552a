"""The engines of all models, used under one name: by an ingress, or by the store."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from raycache.cluster.capacity import Bundle, Gangs
from raycache.ingress.engine_handle import EngineHandle
from raycache.ingress.engine_pool import EnginePool
from raycache.ingress.sse import Events
from raycache.metrics import IngressMetrics
from raycache.protocol.model_cards import named
from raycache.protocol.schemas import GenerationRequest, GenerationResult, ResolvedRequest
from raycache.settings import ServiceSettings

__all__ = ["EnginePools"]


class EnginePools(Mapping[str, EnginePool]):
    """The engines of each model, by name. A request goes to those of the model that it names.

    Every method that takes a request raises :class:`RequestError`: 404 if there is no such model.

    Args:
        settings: the application's.
        engines: by model name, the handle of its engines' deployment.
        bundles: by model name, the resources that one engine needs of the cluster, to explain why none starts.
        metrics: metrics of this process.
        max_timeout_s: the longest deadline that requests may set, instead of each model's limit.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        engines: Mapping[str, EngineHandle],
        bundles: Mapping[str, Sequence[Bundle]],
        metrics: IngressMetrics,
        max_timeout_s: float | None = None,
    ) -> None:
        self.names, caller = settings.names, uuid.uuid4().hex
        by_name = {one.model.name: one for one in settings.engines}
        wanted = {name: Gangs(name, bundles[name], one.engines_kept) for name, one in by_name.items()}
        self._pools = {}
        for name, one in by_name.items():
            beside = [gangs for model, gangs in wanted.items() if model != name]
            self._pools[name] = EnginePool(one, engines[name], wanted[name], beside, caller, metrics, max_timeout_s)

    def __getitem__(self, name: str) -> EnginePool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    async def run(self, told: Callable[[], None] = lambda: None) -> None:
        """Poll all engines forever, calling ``told`` after each round; each model is polled independently."""
        await asyncio.gather(*(pool.run(told) for pool in self.values()))

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """See :meth:`EnginePool.generate`."""
        pool, request = self._routed(request)
        return await pool.generate(request)

    async def stream(self, request: GenerationRequest) -> Events:
        """See :meth:`EnginePool.stream`."""
        pool, request = self._routed(request)
        async with contextlib.aclosing(pool.stream(request)) as events:
            async for event in events:
                yield event

    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None:
        """The request that engines would get, see :meth:`EnginePool.judge`."""
        pool, request = self._routed(request)
        return await pool.judge(request)

    async def order(self, request: GenerationRequest) -> ResolvedRequest:
        """The request that engines get, see :meth:`EnginePool.order`."""
        pool, request = self._routed(request)
        return await pool.order(request)

    def own_name(self, model: str | None) -> str:
        """The name of the model that requests mean by ``model``."""
        return named(self.names, model)

    def longest_timeout_s(self, model: str | None) -> float:
        """The longest deadline that a request with this ``model`` may set."""
        return self.of(model).policy.max_timeout_s

    def of(self, model: str | None) -> EnginePool:
        """The engines for requests with this ``model``."""
        return self[named(self.names, model)]

    def _routed(self, request: GenerationRequest) -> tuple[EnginePool, GenerationRequest]:
        """The engines for a request, and the request with their model's own name."""
        name = named(self.names, request.model)  # works without any engine
        return self[name], request.model_copy(update={"model": name})
