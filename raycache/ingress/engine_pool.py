"""The engines of one model: checks a request against their status, sends it to one, and to another if that is lost."""

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
from raycache.settings import AppSettings, Policy

__all__ = ["EnginePool"]

logger = logging.getLogger("ray.serve")

#: Seconds past a job's deadline after which an engine that says nothing is given up.
_GRACE_S = 5.0
#: Answers after which another engine may do better: it died, its ranks did and there was no time, it is being stopped.
_ENGINE_LOST = frozenset({"engine_died", "gang_restarting"})


class EnginePool:
    """All engines of one model.

    Args:
        settings: of the model's engines.
        engine: handle of their deployment.
        wanted: engines that are to be there.
        beside: engines of other models, which take room in the same cluster.
        caller: in whose name engines are asked.
        metrics: of the ingress.
        max_timeout_s: the longest deadline that requests may name, in place of the limits' own.

    Attributes:
        watch: what is known of the engines.
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
        """Ask the engines for ever; ``told`` is called after each round."""

        def measured() -> None:
            self._metrics.model_ready.set(float(self.ready), {"model": self._settings.model.name})
            told()

        await self.watch.run(measured)

    @property
    def policy(self) -> Policy:
        """Limits and defaults in force: the engines', once one has told them."""
        policy = self.watch.last.policy if self.watch.last else self._own_policy
        return policy.allowing(self._max_timeout_s)

    @property
    def capabilities(self) -> Capabilities | None:
        """Of the model; None until an engine has told them."""
        return self.watch.last.model if self.watch.last else None

    @property
    def ranks(self) -> int:
        """Of one engine."""
        return self._settings.parallel.ranks_per_replica

    @property
    def serves(self) -> bool:
        """An engine with a warm gang is there."""
        return any(status.ready for status in self.watch.statuses)

    @property
    def asleep(self) -> bool:
        """No engine runs because nothing is asked: the next request starts one, and waits for it."""
        return self.watch.may_sleep and not self.watch.statuses and not self.watch.shortage

    @property
    def ready(self) -> bool:
        """A request would be served, or would wake an engine."""
        return self.serves or self.asleep

    @property
    def reason(self) -> str | None:
        """Why nothing is served, in a word or with what is lacking; None while an engine serves."""
        if self.serves:
            return None
        return "asleep" if self.asleep else self.watch.shortage or "starting"

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """What one engine makes of ``request``, which names this model or none.

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
        """The same, told from the job's admission on: an ``QueuedEvent`` first, the result last."""
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

    async def judge(self, request: GenerationRequest) -> ResolvedRequest | None:
        """What engines would be asked, by what they said last: none needs to serve now, and none is woken.

        None: they sleep, and none has ever said what it can do. Only what no model changes was judged.

        Raises:
            RequestError: what is wrong with it; 503 while the first engine starts.
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
        logger.debug("Asking an engine for %d of %s, %d steps, %s", order.n, order.size, steps, method)
        return order

    async def order(self, request: GenerationRequest) -> ResolvedRequest:
        """What engines are asked, once one serves; where they sleep, one is woken."""
        if self.watch.may_sleep and self.watch.last:
            self._judged(request, self.watch.last)  # what is wrong with it wakes nobody
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
        await self.watch.refresh()
        left = deadline - time.monotonic()
        if left <= 0 or not self.serves:
            return None
        logger.warning("Asking another engine: %s", failure.message)
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
            # The engine aborts on its own deadline; a timeout is for one that cannot even say so.
            response.cancel()
            return await self._lost(error)

    async def _stream(self, order: ResolvedRequest) -> AsyncGenerator[EngineEvent, None]:
        """One engine's events; the last is a result or an error."""
        events = self._engine.options(stream=True).generate_stream.remote(order, self._caller, **asked_by())
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
        await self.watch.refresh()  # what was known before counts this one as ready
        if isinstance(error, DEATHS):
            return unavailable("the engine died while drawing; try again", self.watch.ready_in_s, "engine_died")
        return unavailable("no engine is ready: it failed to start, the log has the reason", self.watch.ready_in_s)
