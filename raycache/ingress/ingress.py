"""The ingress deployment: CPU only, one for HTTP and Python handles alike.

It is up before any engine is, and it never waits for one that is not there: a small watch knows which engines serve,
what they can generate and what their limits are, so a request is judged, refused or passed on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Mapping, Sequence

from raycache.cluster.capacity import Bundle
from raycache.front import CALLBACK, VARIABLE
from raycache.ingress.api import build_http_app
from raycache.ingress.auth import Key, KeyFile, warn_of_unknown
from raycache.ingress.engine_handle import EngineHandle
from raycache.ingress.engine_pools import EnginePools
from raycache.ingress.sse import Events
from raycache.ingress.store_handle import StoreClient, StoreHandle
from raycache.limits import LimitSettings
from raycache.metrics import IngressMetrics
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.model_cards import ModelCard
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationRequest,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
)
from raycache.settings import ServiceSettings

logger = logging.getLogger("ray.serve")


class Ingress:
    """Front of the application: ``generate``, ``generate_stream``, ``models`` and ``status`` for handles; HTTP besides.

    Args:
        settings: of the application.
        engines: by each model's name the handle of its engines' deployment.
        bundles: by the same names what one engine asks of the cluster, to explain why none comes up.
        store: handle of the store, where there is one.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        engines: Mapping[str, EngineHandle],
        bundles: Mapping[str, Sequence[Bundle]],
        store: StoreHandle | None = None,
    ) -> None:
        self.settings, self._store = settings, StoreClient(store) if store else None
        self._keys = KeyFile(settings.ingress.api_keys_file)
        warn_of_unknown(self.keys, {key for one in settings.engines for key in one.limits.keys})
        self.metrics = IngressMetrics()
        self._pools = EnginePools(settings, engines, bundles, self.metrics)
        if not os.environ.get(VARIABLE):
            logger.warning("Serve's proxy reads headers and bodies without bounds: set %s=%s", VARIABLE, CALLBACK)
        self._polling = asyncio.get_running_loop().create_task(self._pools.run(self._tell_ready))

    def __serve_build_asgi_app__(self) -> object:
        return build_http_app(self, self.stream_from_admission, self._store)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Generate ``request.n`` images with the model that the request names.

        Raises:
            RequestError: refused, aborted or failed; ``status`` and ``code`` say which.
        """
        return await self._pools.generate(request)

    async def generate_stream(
        self, request: GenerationRequest
    ) -> AsyncGenerator[ProgressEvent | PreviewEvent | GenerationResult, None]:
        """Generate, and tell about it: a ``ProgressEvent`` per step, previews if asked for, the result last.

        Raises:
            RequestError: as :meth:`generate`; before the first event if the request is refused.
        """
        async with contextlib.aclosing(self.stream_from_admission(request)) as events:
            async for event in events:
                if not isinstance(event, QueuedEvent):
                    yield event

    async def stream_from_admission(self, request: GenerationRequest) -> Events:
        """As :meth:`generate_stream`, with an ``QueuedEvent`` first: over HTTP the status goes out with it."""
        async with contextlib.aclosing(self._pools.stream(request)) as events:
            async for event in events:
                yield event

    async def status(self) -> list[EngineStatus]:
        """Every engine of every model that answers, at most a second old; an empty list while none does."""
        told = await asyncio.gather(*(pool.watch.latest() for pool in self._pools.values()))
        return [status for statuses in told for status in statuses]

    async def models(self) -> list[ModelCard]:
        """The models in the order of the settings, as far as their engines have told of them."""
        return [
            ModelCard(
                name=name,
                aliases=self._pools.names.aliases_of(name),
                default=name == self._pools.names.default,
                ready=pool.ready,
                reason=pool.reason,
                capabilities=pool.capabilities,
                ranks=pool.ranks,
                policy=pool.policy,
            )
            for name, pool in self._pools.items()
        ]

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force; empty where none is asked for."""
        return self._keys.current()

    async def check_health(self) -> None:
        """Its answer says it all: Serve runs it on the loop that requests run on, where no other check looks soon."""

    @property
    def asleep(self) -> bool:
        """A model's engines do not run because nothing is asked: its next request starts one, and waits for it."""
        return any(pool.asleep for pool in self._pools.values())

    @property
    def max_body_bytes(self) -> int:
        """The largest limit in force: which model a body is for is known when it has been read."""
        return max(pool.policy.limits.max_body_bytes for pool in self._pools.values())

    @property
    def max_upload_bytes(self) -> int:
        """The same of bodies that bring pictures."""
        return max(pool.policy.limits.max_upload_bytes for pool in self._pools.values())

    def limits_of(self, model: str | None) -> LimitSettings:
        """The limits of requests that give this as ``model``.

        Raises:
            RequestError: 404 where there is no such model.
        """
        return self._pools.of(model).policy.limits

    def capabilities_of(self, model: str | None) -> Capabilities | None:
        """What the engines told of the model that is asked for so, once one has.

        Raises:
            RequestError: 404 where there is no such model.
        """
        return self._pools.of(model).capabilities

    def longest_timeout_s(self, model: str | None) -> float:
        """The longest deadline that a request which gives this as ``model`` may name.

        Raises:
            RequestError: 404 where there is no such model.
        """
        return self._pools.longest_timeout_s(model)

    @property
    def ready_in_s(self) -> float:
        """Seconds until an engine of any model should be ready."""
        return min(pool.watch.ready_in_s for pool in self._pools.values())

    @property
    def shortage(self) -> str | None:
        """What the cluster lacks for engines to start, if that was found out."""
        return next((reason for pool in self._pools.values() if (reason := pool.watch.shortage)), None)

    def _tell_ready(self) -> None:
        self.metrics.ready.set(float(any(pool.ready for pool in self._pools.values())))
