"""The engines of one model: checks a request against their status, sends it to one, or to another if that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from ray.serve.exceptions import DeploymentUnavailableError

from raycache.cluster.capacity import Gangs
from raycache.ingress.asker import asked_by, key_in_use
from raycache.ingress.engine_handle import EngineEvent, EngineHandle
from raycache.ingress.engine_watch import EngineWatch
from raycache.ingress.sse import Events
from raycache.metrics import IngressMetrics
from raycache.policy import Policy
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError, unavailable
from raycache.protocol.resolve import check_limits, resolve
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationRequest,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    ResolvedRequest,
)
from raycache.ray_errors import DEATHS
from raycache.settings import AppSettings

__all__ = ["EnginePool"]

logger = logging.getLogger("ray.serve")

#: Seconds after a job's deadline to wait for the engine's answer.
_GRACE_S = 5.0
#: Errors after which another engine may succeed: the engine or its ranks died, or it is being stopped.
_ENGINE_LOST = frozenset({"engine_died", "gang_restarting"})


class EnginePool:
    """All engines of one model.

    Args:
        settings: of the model's engines.
        engine: handle of their deployment.
        wanted: number of engines wanted.
        beside: engines of other models, which use the same cluster.
        caller: the name under which this process sends requests to engines.
        metrics: metrics of this process.
        max_timeout_s: the longest deadline that requests may set, instead of that of the limits.

    Attributes:
        watch: the last known status of the engines.
    """

    def __init__(
        self,
        settings: AppSettings,
        engine: EngineHandle,
        wanted: Gangs,
        beside: Sequence[Gangs],
        caller: str,
        metrics: IngressMetrics,
        max_timeout_s: float | None = None,
    ) -> None:
        self._settings, self._own_policy, self._max_timeout_s = settings, settings.policy, max_timeout_s
        self._engine, self._caller, self._metrics = engine, caller, metrics
        self.watch = EngineWatch(engine, wanted, caller, beside)

    async def run(self, told: Callable[[], None]) -> None:
        """Poll the engines forever; ``told`` is called after each round."""

        def measured() -> None:
            self._metrics.model_ready.set(float(self.ready), {"model": self._settings.model.name})
            told()

        await self.watch.run(measured)

    @property
    def policy(self) -> Policy:
        """Limits and defaults in force: the engines', once one has reported them."""
        policy = self.watch.last.policy if self.watch.last else self._own_policy
        return policy.allowing(self._max_timeout_s)

    @property
    def capabilities(self) -> Capabilities | None:
        """The model's capabilities; None until an engine has reported them."""
        return self.watch.last.model if self.watch.last else None

    @property
    def ranks(self) -> int:
        """Number of ranks of one engine."""
        return self._settings.parallel.ranks_per_replica

    @property
    def serves(self) -> bool:
        """Whether an engine with a warm gang serves."""
        return any(status.ready for status in self.watch.statuses)

    @property
    def asleep(self) -> bool:
        """Whether no engine runs because there are no requests: the next one starts an engine and waits for it."""
        return self.watch.may_sleep and not self.watch.statuses and not self.watch.shortage

    @property
    def ready(self) -> bool:
        """Whether a request would be served, or would start an engine."""
        return self.serves or self.asleep

    @property
    def reason(self) -> str | None:
        """Why no engine serves: a keyword, or what the cluster lacks; None while one serves."""
        if self.serves:
            return None
        return "asleep" if self.asleep else self.watch.shortage or "starting"

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Generate ``request``, which names this model or none, on one engine.

        Raises:
            RequestError: refused, aborted or failed.
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

    async def stream(self, request: GenerationRequest) -> Events:
        """The same as a stream from the job's admission on: a ``QueuedEvent`` first, the result last."""
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
                    # If rerun on another engine, its first steps are not reported twice.
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

    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None:
        """The request for engines, checked by their last known status: none needs to serve now, and none is started.

        None: no engine has ever reported its capabilities. Then only model-independent parts were checked.

        Raises:
            RequestError: an error in the request; 503 while the first engine starts.
        """
        if (last := self.watch.last) is not None:
            return self._judged(request, last)
        if not self.watch.may_sleep:
            return await self.order(request)
        check_limits(request, self.policy, key_in_use.get())
        return None

    async def _resolve(self, request: GenerationRequest) -> ResolvedRequest:
        order = await self.order(request)
        steps, method = order.num_inference_steps, order.cache.type
        logger.debug("Sending %d of %s to an engine, %d steps, %s", order.n, order.size, steps, method)
        return order

    async def order(self, request: GenerationRequest) -> ResolvedRequest:
        """The request for engines, once one serves; if none runs, one is started."""
        if self.watch.may_sleep and self.watch.last:
            self._judged(request, self.watch.last)  # a wrong request must not start an engine
        patience_s = request.timeout_s or self._settings.reliability.request_timeout_s
        return self._judged(request, await self.watch.serving(patience_s))

    def _judged(self, request: GenerationRequest, engine: EngineStatus) -> ResolvedRequest:
        return resolve(
            request,
            engine.policy.allowing(self._max_timeout_s),
            engine.model,
            model_name=self._settings.model.name,
            ranks=self.ranks,
            key=key_in_use.get(),
        )

    async def _again(
        self, order: ResolvedRequest, failure: RequestError, deadline: float, lost: bool
    ) -> ResolvedRequest | None:
        """Wait, then return the request to send after ``failure``; None if the failure is the answer.

        Only one engine may be ``lost``. The job was admitted there, so it waits if the next engine has no place.
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
        """The request for another engine after ``failure``; None if another engine cannot help.

        The result depends only on the order, so any other engine may run it.
        """
        if failure.code not in _ENGINE_LOST:
            return None
        await self.watch.refresh()
        left = deadline - time.monotonic()
        if left <= 0 or not self.serves:
            return None
        logger.warning("Trying another engine: %s", failure.message)
        self._metrics.asked_again(failure, self._settings.model.name)
        return replace(order, timeout_s=left)

    async def _call(self, order: ResolvedRequest) -> GenerationResult | RequestError:
        response = self._engine.generate.remote(order, self._caller, **asked_by())
        try:
            return await asyncio.wait_for(response, order.timeout_s + _GRACE_S)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except (TimeoutError, *DEATHS, DeploymentUnavailableError) as error:
            # The engine aborts at the deadline itself; this timeout is for one that cannot even answer.
            response.cancel()
            return await self._lost(error)

    async def _stream(self, order: ResolvedRequest) -> AsyncGenerator[EngineEvent, None]:
        """One engine's events; the last is a result or an error."""
        events = self._engine.options(stream=True).generate_stream.remote(order, self._caller, **asked_by())
        patience = time.monotonic() + order.timeout_s + _GRACE_S
        try:
            while True:
                # Not asyncio.timeout: a generator may be resumed by a different task than the one that started it.
                yield await asyncio.wait_for(anext(events), patience - time.monotonic())
        except StopAsyncIteration:
            return
        except (TimeoutError, *DEATHS, DeploymentUnavailableError) as error:
            yield await self._lost(error)
        finally:
            events.cancel()

    async def _lost(self, error: Exception) -> RequestError:
        """The error for an engine that did not answer."""
        if isinstance(error, TimeoutError):
            return RequestError(504, "no engine answered in time", "timeout_s", "deadline_exceeded")
        await self.watch.refresh()  # the last status still has this one as ready
        if isinstance(error, DEATHS):
            return unavailable("the engine died while generating; try again", self.watch.ready_in_s, "engine_died")
        return unavailable("no engine is ready: it failed to start, the log has the reason", self.watch.ready_in_s)
