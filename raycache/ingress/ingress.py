"""The ingress deployment: CPU only, one for HTTP and Python handles alike.

It is up before any engine is, and it never waits for one that is not there: a small watch knows which engines serve,
what they can generate and what their limits are, so a request is judged, refused or passed on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from ray.serve.exceptions import DeploymentUnavailableError

from raycache.cluster.capacity import Bundle
from raycache.front import CALLBACK, VARIABLE
from raycache.ingress.api import build_http_app
from raycache.ingress.asker import asked_by, key_in_use
from raycache.ingress.auth import Key, KeyFile, warn_of_unknown
from raycache.ingress.engine_handle import EngineEvent, EngineHandle
from raycache.ingress.engine_watch import EngineWatch
from raycache.ingress.sse import Events
from raycache.limits import LimitSettings
from raycache.metrics import IngressMetrics
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.resolve import check_model, resolve
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationRequest,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    ResolvedRequest,
)
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings, Policy

logger = logging.getLogger("ray.serve")

#: Seconds past a job's deadline after which an engine that says nothing is given up.
_GRACE_S = 5.0
#: Answers after which another engine may do better: it died, its ranks did and there was no time, it is being stopped.
_ENGINE_LOST = frozenset({"engine_died", "gang_restarting"})


class Ingress:
    """Front of the application: ``generate``, ``generate_stream`` and ``status`` for handles; HTTP besides.

    Args:
        settings: of the application.
        engine: handle of the engine deployment.
        bundles: what one engine asks of the cluster, to explain why none comes up.
    """

    def __init__(self, settings: AppSettings, engine: EngineHandle, bundles: Sequence[Bundle]) -> None:
        self.settings, self._own_policy = settings, settings.policy
        self._keys = KeyFile(settings.ingress.api_keys_file)
        warn_of_unknown(self.keys, settings.limits.keys)
        self._engine = engine
        wanted = settings.autoscaling.min_replicas if settings.autoscaling else settings.num_replicas
        self._name, self.metrics = uuid.uuid4().hex, IngressMetrics()
        self._watch = EngineWatch(engine, bundles, wanted, self._name)
        if not os.environ.get(VARIABLE):
            logger.warning("Serve's proxy reads headers and bodies without bounds: set %s=%s", VARIABLE, CALLBACK)
        self._polling = asyncio.get_running_loop().create_task(self._watch.run(self._tell_ready))

    def __serve_build_asgi_app__(self) -> object:
        return build_http_app(self, self.stream_from_admission)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Generate ``request.n`` images.

        Raises:
            RequestError: refused, aborted or failed; ``status`` and ``code`` say which.
        """
        order = await self._resolve(request)
        deadline = time.monotonic() + order.timeout_s
        answer, lost = await self._call(order), False
        while isinstance(answer, RequestError):
            again = await self._again(order, answer, deadline, lost)
            if again is None:
                raise answer
            order, lost = again, True
            answer = await self._call(order)
        return answer

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
        order = await self._resolve(request)
        deadline = time.monotonic() + order.timeout_s
        steps = previews = 0
        lost = False
        while True:
            failure = None
            async with contextlib.aclosing(self._stream(order)) as events:
                async for event in events:
                    if isinstance(event, RequestError):
                        failure = event
                        break
                    # Run again elsewhere, it does not tell its first steps twice.
                    if isinstance(event, ProgressEvent):
                        if event.step <= steps:
                            continue
                        steps = event.step
                    elif isinstance(event, PreviewEvent):
                        if event.index < previews:
                            continue
                        previews = event.index + 1
                    yield event
            if failure is None:
                return
            again = await self._again(order, failure, deadline, lost)
            if again is None:
                raise failure
            order, lost = again, True

    async def status(self) -> list[EngineStatus]:
        """Every engine that answers, at most a second old; an empty list while none does."""
        return await self._watch.latest()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force; empty where none is asked for."""
        return self._keys.current()

    async def check_health(self) -> None:
        """Its answer says it all: Serve runs it on the loop that requests run on, where no other check looks soon."""

    @property
    def asleep(self) -> bool:
        """No engine runs because nothing is asked: the next request starts one, and waits for it."""
        return self._watch.may_sleep and not self._watch.statuses and not self._watch.shortage

    @property
    def max_body_bytes(self) -> int:
        """The limit in force: the engines', once one has told it."""
        return self._policy.limits.max_body_bytes

    @property
    def limits(self) -> LimitSettings:
        """Those in force."""
        return self._policy.limits

    @property
    def model(self) -> Capabilities | None:
        """What the engines told of their model, once one has."""
        return self._watch.last.model if self._watch.last else None

    @property
    def max_timeout_s(self) -> float:
        """The longest deadline that a request may name."""
        return self._policy.max_timeout_s

    @property
    def _policy(self) -> Policy:
        return self._watch.last.policy if self._watch.last else self._own_policy

    @property
    def ready_in_s(self) -> float:
        """Seconds until an engine should be ready."""
        return self._watch.ready_in_s

    @property
    def shortage(self) -> str | None:
        """What the cluster lacks for the engines to start, if that was found out."""
        return self._watch.shortage

    def _tell_ready(self) -> None:
        self.metrics.ready.set(float(self.asleep or any(status.ready for status in self._watch.statuses)))

    async def _resolve(self, request: GenerationRequest) -> ResolvedRequest:
        order = await self._ordered(request)
        steps, method = order.num_inference_steps, order.cache.type
        logger.debug("Asking an engine for %d of %s, %d steps, %s", order.n, order.size, steps, method)
        return order

    async def _ordered(self, request: GenerationRequest) -> ResolvedRequest:
        check_model(request.model, self.settings.model.name)  # no engine is needed to know that
        if self._watch.may_sleep and self._watch.last:
            self._judged(request, self._watch.last)  # what is wrong with it wakes nobody
        patience_s = request.timeout_s or self.settings.reliability.request_timeout_s
        return self._judged(request, await self._watch.serving(patience_s))

    def _judged(self, request: GenerationRequest, engine: EngineStatus) -> ResolvedRequest:
        return resolve(
            request,
            engine.policy,
            engine.model,
            model_name=self.settings.model.name,
            ranks=self.settings.parallel.ranks_per_replica,
            key=key_in_use.get(),
        )

    async def _again(
        self, order: ResolvedRequest, failure: RequestError, deadline: float, lost: bool
    ) -> ResolvedRequest | None:
        """What to ask after ``failure``, once it is time to; None if the failure is the answer.

        Only one engine may be ``lost``. The job was admitted by it, so where the next has no place, it waits for one.
        """
        if not lost:
            return await self._elsewhere(order, failure, deadline)
        if failure.code != "queue_full" or failure.retry_after_s is None:
            return None
        left = deadline - time.monotonic() - failure.retry_after_s
        if left <= 0:
            return None
        await asyncio.sleep(failure.retry_after_s)
        return replace(order, timeout_s=left)

    async def _elsewhere(
        self, order: ResolvedRequest, failure: RequestError, deadline: float
    ) -> ResolvedRequest | None:
        """What to ask of another engine after ``failure``; None where that is no help.

        What an engine generates depends on the order alone, so any other may do it.
        """
        if failure.code not in _ENGINE_LOST:
            return None
        await self._watch.refresh()
        left = deadline - time.monotonic()
        if left <= 0 or not any(status.ready for status in self._watch.statuses):
            return None
        logger.warning("Asking another engine: %s", failure.message)
        self.metrics.asked_again(failure)
        return replace(order, timeout_s=left)

    async def _call(self, order: ResolvedRequest) -> GenerationResult | RequestError:
        response = self._engine.generate.remote(order, self._name, **asked_by())
        try:
            return await asyncio.wait_for(response, order.timeout_s + _GRACE_S)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (TimeoutError, *DEATHS, DeploymentUnavailableError) as error:
            # The engine aborts on its own deadline; a timeout is for one that cannot even say so.
            response.cancel()
            return await self._lost(error)

    async def _stream(self, order: ResolvedRequest) -> AsyncGenerator[EngineEvent, None]:
        """One engine's events; the last is a result or an error."""
        events = self._engine.options(stream=True).generate_stream.remote(order, self._name, **asked_by())
        patience = time.monotonic() + order.timeout_s + _GRACE_S
        try:
            while True:
                # Not asyncio.timeout: a generator may be resumed by another task than the one that began it.
                yield await asyncio.wait_for(anext(events), patience - time.monotonic())
        except StopAsyncIteration:
            return
        except (TimeoutError, *DEATHS, DeploymentUnavailableError) as error:
            yield await self._lost(error)
        finally:
            events.cancel()

    async def _lost(self, error: Exception) -> RequestError:
        """What is said of an engine that gave no answer."""
        if isinstance(error, TimeoutError):
            return RequestError(504, "no engine answered in time", "timeout_s", "deadline_exceeded")
        await self._watch.refresh()  # what was known before counts this one as ready
        if isinstance(error, DEATHS):
            return unavailable("the engine died while drawing; try again", self._watch.ready_in_s, "engine_died")
        return unavailable("no engine is ready: it failed to start, the log has the reason", self._watch.ready_in_s)
