"""The ingress deployment: CPU only, one for HTTP and Python handles alike.

It is up before any engine is, and never waits for one that does not run: a small watch knows which engines serve,
what they can generate and what their limits are, so a request is checked, refused or passed on immediately.
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
        settings: the application's.
        engines: by model name, the handle of its engines' deployment.
        bundles: by model name, the resources that one engine needs of the cluster, to explain why none starts.
        store: handle of the store, if there is one.
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
        """Generate as a stream: a ``ProgressEvent`` per step, previews if requested, the result last.

        Raises:
            RequestError: as :meth:`generate`; before the first event if the request is refused.
        """
        async with contextlib.aclosing(self.stream_from_admission(request)) as events:
            async for event in events:
                if not isinstance(event, QueuedEvent):
                    yield event

    async def stream_from_admission(self, request: GenerationRequest) -> Events:
        """As :meth:`generate_stream`, with a ``QueuedEvent`` first: over HTTP the status is sent with it."""
        async with contextlib.aclosing(self._pools.stream(request)) as events:
            async for event in events:
                yield event

    async def status(self) -> list[EngineStatus]:
        """The status of every answering engine of every model, at most a second old; empty while none answers."""
        told = await asyncio.gather(*(pool.watch.latest() for pool in self._pools.values()))
        return [status for statuses in told for status in statuses]

    async def models(self) -> list[ModelCard]:
        """The models in the order of the settings, as far as their engines have reported them."""
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
        """The keys in force; empty if no key is required."""
        return self._keys.current()

    async def check_health(self) -> None:
        """Answering is enough: Serve runs this on the event loop of the requests, which is then not blocked."""

    @property
    def asleep(self) -> bool:
        """A model has no engines running because it has no requests: the next one starts an engine and waits."""
        return any(pool.asleep for pool in self._pools.values())

    @property
    def max_body_bytes(self) -> int:
        """The largest limit in force: a body's model is known only after reading it."""
        return max(pool.policy.limits.max_body_bytes for pool in self._pools.values())

    @property
    def max_upload_bytes(self) -> int:
        """The same for bodies that may contain images."""
        return max(pool.policy.limits.max_upload_bytes for pool in self._pools.values())

    def limits_of(self, model: str | None) -> LimitSettings:
        """The limits of requests with this ``model``.

        Raises:
            RequestError: 404 if there is no such model.
        """
        return self._pools.of(model).policy.limits

    def capabilities_of(self, model: str | None) -> Capabilities | None:
        """The capabilities of the model with this name, once an engine has reported them.

        Raises:
            RequestError: 404 if there is no such model.
        """
        return self._pools.of(model).capabilities

    def longest_timeout_s(self, model: str | None) -> float:
        """The longest deadline that a request with this ``model`` may set.

        Raises:
            RequestError: 404 if there is no such model.
        """
        return self._pools.longest_timeout_s(model)

    @property
    def ready_in_s(self) -> float:
        """Seconds until an engine of any model should be ready."""
        return min(pool.watch.ready_in_s for pool in self._pools.values())

    @property
    def shortage(self) -> str | None:
        """What the cluster lacks for engines to start, if that is known."""
        return next((reason for pool in self._pools.values() if (reason := pool.watch.shortage)), None)

    def _tell_ready(self) -> None:
        self.metrics.ready.set(float(any(pool.ready for pool in self._pools.values())))
