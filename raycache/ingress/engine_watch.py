"""The last known status of a model's engines: which serve, what they can generate, their limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError

from raycache.cluster.capacity import Bundle, Gangs, shortage_of_all
from raycache.ingress.engine_handle import EngineHandle
from raycache.protocol.errors import unavailable
from raycache.protocol.schemas import EngineStatus
from raycache.ray_errors import DEATHS
from raycache.rebuilds import SERVE_S

__all__ = ["EngineWatch"]

logger = logging.getLogger("ray.serve")

_POLL_S, _POLL_STARTING_S = 1.0, 0.25
_STATUS_TIMEOUT_S = 2.0
#: A poll older than this is repeated before checking a request with it.
_FRESH_S = 3.0
#: Seconds without any replica known to Serve, or without any answer, after which the engines count as gone.
_GONE_S, _SILENCE_S = 2.0, 15.0
_EXPLAIN_S = 30.0
#: The minimum time announced until a missing engine is ready.
_SOON_S = 5.0


class EngineWatch:
    """The last known status of one model's engines.

    Args:
        engine: handle of their deployment.
        wanted: number of engines wanted; 0 = none while there are no requests, see :meth:`serving`.
        caller: name of the process that polls; while it polls, engines know that it waits for its jobs.
        beside: engines of other models, which use the same cluster.
    """

    def __init__(
        self, engine: EngineHandle, wanted: Gangs, caller: str | None = None, beside: Sequence[Gangs] = ()
    ) -> None:
        self._caller = caller
        self._engine, self._beside = engine, beside
        self._wanted = replace(wanted, number=max(1, wanted.number))
        self.may_sleep = wanted.number == 0
        self.last: EngineStatus | None = None
        self.statuses: list[EngineStatus] = []
        self.shortage: str | None = None
        self._began = time.monotonic()
        self._asked_at = self._heard_at = self._logged_at = -math.inf
        self._asking, self._polls = asyncio.Lock(), 0

    async def run(self, told: Callable[[], None] = lambda: None) -> None:
        """Poll forever, faster while no engine serves, log every change, and call ``told`` after each poll."""
        served = False
        while True:
            try:
                await self.refresh()
                if bool(self.statuses) != served:
                    served = not served
                    self._announce(served)
                if not served:
                    self._explain()
                told()
            except Exception:
                logger.exception("Could not poll the engines; trying again")
            await asyncio.sleep(_POLL_S if served else _POLL_STARTING_S)

    async def refresh(self, polls: int | None = None) -> None:
        """Poll every engine. A missing answer is not death: the last status of a busy engine stays valid for a while.

        ``polls``: number of polls when the caller arrived; any later poll is recent enough for it.
        """
        async with self._asking:
            if polls is None or self._polls == polls:
                self._polls += 1
                await self._ask()

    async def _ask(self) -> None:
        self._asked_at = time.monotonic()
        try:
            answers = await self._engine.broadcast("poll", self._caller).results_async(
                timeout_s=_STATUS_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:
            # While Serve changes a deployment's config it briefly knows no replica; requests can wait for that.
            if time.monotonic() - self._heard_at > _GONE_S:
                self.statuses = []
            return
        except (TimeoutError, RayError):
            answers = []
        heard = [answer for answer in answers if isinstance(answer, EngineStatus)]
        all_dead = bool(answers) and all(isinstance(answer, DEATHS) for answer in answers)
        silent = time.monotonic() - self._heard_at > _SILENCE_S
        if silent and self.statuses and not heard and not all_dead:
            heard = await self._anyone()
        if heard:
            self._heard_at, self.last = time.monotonic(), heard[0]
        if heard or all_dead or silent:
            self.statuses = heard

    async def _anyone(self) -> list[EngineStatus]:
        """A hanging engine keeps a broadcast from ending; Serve's router avoids it and finds one that answers."""
        with contextlib.suppress(TimeoutError, RayError, DeploymentUnavailableError):
            return [await asyncio.wait_for(self._engine.poll.remote(self._caller), _STATUS_TIMEOUT_S)]
        return []

    async def latest(self) -> list[EngineStatus]:
        """The last answers; polls again if they are too old."""
        if time.monotonic() - self._asked_at > _FRESH_S:
            await self.refresh()
        return self.statuses

    async def serving(self, patience_s: float = 0.0) -> EngineStatus:
        """Any engine that takes jobs: its model and policy are those of all.

        Args:
            patience_s: if engines may sleep, seconds to wait for one to start.

        Raises:
            RequestError: 503 if there is none.
        """
        statuses = await self.latest()
        if not statuses and self.may_sleep:
            # A call that waits at Serve's handle makes Serve start an engine if there is none.
            with contextlib.suppress(TimeoutError, RayError, DeploymentUnavailableError):
                return await asyncio.wait_for(self._engine.poll.remote(self._caller), patience_s)
        if not statuses:
            await self.refresh(self._polls)  # Serve may have marked one ready since the last poll
            statuses = self.statuses
        if not statuses:
            raise unavailable(self.shortage or "no engine is ready: it is starting or being replaced", self.ready_in_s)
        return statuses[0]

    @property
    def ready_in_s(self) -> float:
        """Estimated seconds until an engine is ready: as long as the last one took, or half of the time so far.

        Serve needs some more to notice that one has died, and to start a process. An engine that replaces its ranks
        reports itself how long that takes.
        """
        if self.statuses:
            return max(1.0, min(status.gang.get("ready_in_s", 0.0) for status in self.statuses))
        now = time.monotonic()
        gone_s = now - (self._heard_at if self.last else self._began)
        needed_s = SERVE_S + self.last.start_s if self.last else 0.0
        return max(needed_s - gone_s, 0.5 * gone_s, _SOON_S)

    def _announce(self, served: bool) -> None:
        model = f"model {self._wanted.model!r}: " if self._beside else ""
        if served:
            logger.info("%sServing POST /v1/images/generations; engines ready: %d", model, len(self.statuses))
        elif self.may_sleep:
            logger.info("%sNo engine runs; the next request starts one", model)
        else:
            logger.warning("%sNo engine is ready; requests are answered 503 until one is", model)

    def _explain(self) -> None:
        """Log every 30 s what the cluster lacks: Ray waits for it without a message."""
        if time.monotonic() - self._logged_at < _EXPLAIN_S:
            return
        self._logged_at = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.shortage = self._lacking(nodes)
        if self.shortage:
            logger.error("%s", self.shortage[0].upper() + self.shortage[1:])

    def _lacking(self, nodes: Sequence[Bundle]) -> str | None:
        """What the cluster lacks for these engines, given other models' engines that would fit without them."""
        beside = [replace(it, number=0) if shortage_of_all([it], nodes) else it for it in self._beside]
        return shortage_of_all([self._wanted, *beside], nodes)
