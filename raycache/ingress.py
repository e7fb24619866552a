"""The ingress deployment: CPU only, one for HTTP and Python handles alike.

It is up before any engine is, and it never waits for one that is not there: a small watch knows which engines serve,
what they can draw and what their limits are, so a request is judged, refused or passed on at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence

import ray
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from raycache.api import build_http_app
from raycache.auth import read_keys
from raycache.capacity import Bundle, shortage
from raycache.errors import RequestError, unavailable
from raycache.schemas import EngineStatus, GenerationRequest, GenerationResult, PreviewEvent, ProgressEvent
from raycache.settings import AppSettings
from raycache.validation import resolve

logger = logging.getLogger("ray.serve")

_POLL_S, _POLL_STARTING_S = 1.0, 0.25
_STATUS_TIMEOUT_S = 2.0
#: A poll older than this is repeated before a request is judged by it.
_FRESH_S = 3.0
#: Engines count as gone when Serve has known none, or when none has answered, for so long.
_GONE_S, _SILENCE_S = 2.0, 15.0
#: Seconds past a job's deadline after which an engine that says nothing is given up.
_GRACE_S = 5.0
_EXPLAIN_S = 30.0


class EngineWatch:
    """What the engines last said of themselves.

    Args:
        engine: handle of the engine deployment.
        bundles: what one engine asks of the cluster.
        replicas: engines wanted.
    """

    def __init__(self, engine: DeploymentHandle, bundles: Sequence[Bundle], replicas: int) -> None:
        self._engine, self._bundles, self._replicas = engine, bundles, replicas
        self.statuses: list[EngineStatus] = []
        self.shortage: str | None = None
        self._asked_at = self._heard_at = self._logged_at = -math.inf

    async def run(self) -> None:
        """Poll for ever, faster while nobody serves, and log every change."""
        served = False
        while True:
            try:
                await self.refresh()
                if bool(self.statuses) != served:
                    served = not served
                    self._announce(served)
                if not served:
                    self._explain()
            except Exception:
                logger.exception("Could not ask the engines how they are; trying again")
            await asyncio.sleep(_POLL_S if served else _POLL_STARTING_S)

    async def refresh(self) -> None:
        """Ask every engine. Silence is not death: what a busy engine said last holds for a while."""
        self._asked_at = time.monotonic()
        try:
            answers = await self._engine.broadcast("status").results_async(
                timeout_s=_STATUS_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:
            # For a moment Serve knows no replica while it changes a deployment's config; requests can wait that out.
            if time.monotonic() - self._heard_at > _GONE_S:
                self.statuses = []
            return
        except (TimeoutError, RayError):
            answers = []
        heard = [answer for answer in answers if isinstance(answer, EngineStatus)]
        all_dead = bool(answers) and all(isinstance(answer, RayActorError) for answer in answers)
        if heard:
            self._heard_at = time.monotonic()
        if heard or all_dead or time.monotonic() - self._heard_at > _SILENCE_S:
            self.statuses = heard

    async def latest(self) -> list[EngineStatus]:
        """The last answers; asked for again when the poll has fallen behind."""
        if time.monotonic() - self._asked_at > _FRESH_S:
            await self.refresh()
        return self.statuses

    async def serving(self) -> EngineStatus:
        """Any engine that takes jobs: its model and policy are those of all.

        Raises:
            RequestError: 503 when there is none.
        """
        statuses = await self.latest()
        if not statuses:
            raise unavailable(self.shortage or "no engine is ready: it is starting or being replaced")
        return statuses[0]

    def _announce(self, served: bool) -> None:
        if served:
            logger.info("Serving POST /v1/images/generations; engines ready: %d", len(self.statuses))
        else:
            logger.warning("No engine is ready; requests are answered 503 until one is")

    def _explain(self) -> None:
        """Say every 30 s what the cluster lacks: Ray waits for it in silence."""
        if time.monotonic() - self._logged_at < _EXPLAIN_S:
            return
        self._logged_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.shortage = shortage(self._bundles, nodes, self._replicas)
        if self.shortage:
            logger.error("%s", self.shortage[0].upper() + self.shortage[1:])


class Ingress:
    """Front of the application: ``generate``, ``generate_stream`` and ``status`` for handles; HTTP besides.

    Args:
        settings: of the application.
        engine: handle of the engine deployment.
        bundles: what one engine asks of the cluster, to explain why none comes up.
    """

    def __init__(self, settings: AppSettings, engine: DeploymentHandle, bundles: Sequence[Bundle]) -> None:
        self.settings = settings
        self.keys = read_keys(settings.ingress.api_keys_file)
        self._engine = engine
        self._watch = EngineWatch(engine, bundles, settings.num_replicas)
        self._polling = asyncio.get_running_loop().create_task(self._watch.run())

    def __serve_build_asgi_app__(self) -> object:
        return build_http_app(self)

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Draw ``request.n`` pictures.

        Raises:
            RequestError: refused, aborted or failed; ``status`` and ``code`` say which.
        """
        order = await self._resolve(request)
        began = time.monotonic()
        try:
            answer = await self._call(order)
        except RayActorError:
            # The engine died under the job. What it draws depends on the order alone, so another may draw it.
            left = order.timeout_s - (time.monotonic() - began)
            await self._watch.refresh()
            if left <= 0 or not self._watch.statuses:
                raise unavailable("the engine died while drawing; try again", code="engine_died") from None
            answer = await self._retry(order.model_copy(update={"timeout_s": left}))
        if isinstance(answer, RequestError):
            raise answer
        return answer

    async def generate_stream(
        self, request: GenerationRequest
    ) -> AsyncIterator[ProgressEvent | PreviewEvent | GenerationResult]:
        """Draw, and tell about it: a ``ProgressEvent`` per step, previews if asked for, the result last.

        Raises:
            RequestError: as :meth:`generate`; before the first event if the request is refused.
        """
        order = await self._resolve(request)
        events = self._engine.options(stream=True).generate_stream.remote(order)
        try:
            async for event in events:
                if isinstance(event, RequestError):
                    raise event
                yield event
        except RayActorError:
            raise unavailable("the engine died while drawing; try again", code="engine_died") from None
        finally:
            events.cancel()

    async def status(self) -> list[EngineStatus]:
        """Every engine that answers, at most a second old; an empty list while none does."""
        return await self._watch.latest()

    @property
    def shortage(self) -> str | None:
        """What the cluster lacks for the engines to start, if that was found out."""
        return self._watch.shortage

    async def _resolve(self, request: GenerationRequest) -> GenerationRequest:
        engine = await self._watch.serving()
        return resolve(
            request,
            engine.policy,
            engine.model,
            model_name=self.settings.model.name,
            ranks=self.settings.parallel.ranks_per_replica,
        )

    async def _retry(self, order: GenerationRequest) -> GenerationResult | RequestError:
        try:
            return await self._call(order)
        except RayActorError:
            raise unavailable("the engine died while drawing; try again", code="engine_died") from None

    async def _call(self, order: GenerationRequest) -> GenerationResult | RequestError:
        response = self._engine.generate.remote(order)
        try:
            return await asyncio.wait_for(response, order.timeout_s + _GRACE_S)
        except TimeoutError:
            # The engine aborts on its own deadline; this is for one that cannot even say so.
            response.cancel()
            raise RequestError(504, "no engine answered in time", "timeout_s", "deadline_exceeded") from None
        except asyncio.CancelledError:
            response.cancel()
            raise
        except DeploymentUnavailableError:
            raise unavailable("no engine is ready: it failed to start, the log has the reason") from None
