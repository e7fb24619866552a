"""The ingress over fake engines: one that is lost costs no request."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError

from raycache.ingress.ingress import Ingress
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import (
    EngineStatus,
    GenerationRequest,
    GenerationResult,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
)
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 2}})
STATUS = EngineStatus(
    "r", True, 0, False, 0.0, {}, Capabilities("noise", 57, 4, 64, "FluxPipeline", 16), SETTINGS.policy
)
RESULT = GenerationResult(images=[np.zeros((16, 16, 3), np.uint8)], seeds=[7])
BROKEN = RequestError(503, "the ranks are being replaced", None, "gang_restarting", 5.0)
REFUSED = RequestError(429, "full", None, "queue_full", 1.0)
ASK = GenerationRequest(prompt="a circle", timeout_s=30)


class Engines:
    """A handle that answers one call after the other as told; an exception in the list is raised there."""

    def __init__(self, *answers: list[object], alive: bool = True) -> None:
        self.answers, self.alive, self.orders, self.callers = list(answers), alive, [], set()
        self.generate = SimpleNamespace(remote=self._generate)
        self.generate_stream = SimpleNamespace(remote=self._stream)

    def broadcast(self, method: str, caller: str) -> SimpleNamespace:
        async def results(**_: object) -> list[object]:
            self.callers.add(caller)
            return [STATUS] if self.alive or not self.orders else [ActorDiedError()]

        return SimpleNamespace(results_async=results)

    def options(self, stream: bool) -> Engines:
        return self

    def _generate(self, order: GenerationRequest, caller: str) -> object:
        return _Call(self._stream(order, caller))

    def _stream(self, order: GenerationRequest, caller: str) -> _Events:
        self.orders.append(order)
        self.callers.add(caller)
        return _Events(self.answers.pop(0))


class _Events:
    def __init__(self, events: list[object]) -> None:
        self._events = iter(events)

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        for event in self._events:
            if isinstance(event, Exception) and not isinstance(event, RequestError):
                raise event
            return event
        raise StopAsyncIteration

    def cancel(self) -> None: ...


class _Call:
    def __init__(self, events: _Events) -> None:
        self._events = events

    def __await__(self):
        return anext(self._events).__await__()

    def cancel(self) -> None: ...


@pytest.fixture
def ingress() -> Callable[..., Ingress]:
    return lambda engines: Ingress(SETTINGS, {"flux": engines}, {"flux": [{"CPU": 1.0}]})


@pytest.mark.parametrize(
    "lost", [ActorDiedError(), OutOfMemoryError("host memory"), ObjectLostError("00" * 28, None, ""), BROKEN]
)
async def test_another_engine_draws_what_a_lost_one_did_not(ingress, lost):
    engines = Engines([lost], [RESULT])
    assert await ingress(engines).generate(ASK) is RESULT
    first, second = engines.orders
    assert first.seed == second.seed is not None, "the same image"
    assert second.timeout_s < first.timeout_s == 30


async def test_an_ingress_asks_and_orders_in_one_name(ingress):
    """By which engines know whose jobs are waited for."""
    one, other = Engines([RESULT]), Engines([RESULT])
    await ingress(one).generate(ASK)
    [_ async for _ in ingress(other).generate_stream(ASK)]
    assert len(one.callers) == len(other.callers) == 1
    assert one.callers != other.callers


@pytest.mark.parametrize(
    ("engines", "code", "calls"),
    [
        (Engines([ActorDiedError()], [ActorDiedError()]), "engine_died", 2),
        (Engines([ActorDiedError()], alive=False), "engine_died", 1),
        (Engines([REFUSED], [RESULT]), "queue_full", 1),
    ],
)
async def test_once_and_only_where_it_helps(ingress, engines, code, calls):
    with pytest.raises(RequestError) as caught:
        await ingress(engines).generate(ASK)
    assert caught.value.code == code
    assert caught.value.retry_after_s
    assert len(engines.orders) == calls


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("alive", "told"), [(False, (95.0, 100.0)), (True, (1.0, 1.0))])
async def test_who_lost_the_only_engine_is_told_when_there_is_another(ingress, monkeypatch, streamed, alive, told):
    """Not what was said while the dead one still counted as ready."""
    monkeypatch.setattr(sys.modules[__name__], "STATUS", replace(STATUS, start_s=90.0))
    front = ingress(Engines([ActorDiedError()], [ActorDiedError()], alive=alive))
    front._polling.cancel()
    await front._pools["flux"].watch.refresh()
    with pytest.raises(RequestError) as caught:
        _ = [event async for event in front.generate_stream(ASK)] if streamed else await front.generate(ASK)
    assert caught.value.code == "engine_died"
    assert told[0] <= caught.value.retry_after_s <= told[1]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_job_that_lost_its_engine_waits_for_a_place_in_the_next(ingress, streamed):
    """It was admitted; a full queue elsewhere is no answer to it until its deadline."""

    async def last(engines: Engines) -> object:
        if streamed:
            return [event async for event in ingress(engines).generate_stream(ASK)][-1]
        return await ingress(engines).generate(ASK)

    soon = RequestError(429, "full", None, "queue_full", 0.01)
    engines = Engines([ActorDiedError()], [soon], [soon], [RESULT])
    assert await last(engines) is RESULT
    assert [order.seed for order in engines.orders] == [engines.orders[0].seed] * 4
    assert [order.timeout_s for order in engines.orders] == sorted({o.timeout_s for o in engines.orders}, reverse=True)
    with pytest.raises(RequestError, match="full"):
        await last(Engines([ActorDiedError()], [RequestError(429, "full", None, "queue_full", 31.0)], [RESULT]))


async def test_a_stream_goes_on_where_it_was(ingress):
    def step(k: int) -> ProgressEvent:
        return ProgressEvent(k, 3, [False], [None])

    preview = PreviewEvent(0, [])
    engines = Engines([step(1), preview, step(2), ActorDiedError()], [step(1), preview, step(2), step(3), RESULT])
    told = [event async for event in ingress(engines).generate_stream(ASK)]
    assert told == [step(1), preview, step(2), step(3), RESULT]


async def test_over_http_a_stream_tells_its_place_in_each_engines_queue(ingress):
    def step(k: int) -> ProgressEvent:
        return ProgressEvent(k, 2, [False], [None])

    def engines() -> Engines:
        first, second = QueuedEvent(2, 9.0), QueuedEvent(0, 3.0)
        return Engines([first, step(1), ActorDiedError()], [second, step(1), step(2), RESULT])

    told = [event async for event in ingress(engines()).stream_from_admission(ASK)]
    assert told == [QueuedEvent(2, 9.0), step(1), QueuedEvent(0, 3.0), step(2), RESULT]
    told = [event async for event in ingress(engines()).generate_stream(ASK)]
    assert told == [step(1), step(2), RESULT], "handles are told of what is drawn"


async def test_a_stream_that_is_lost_twice_says_so(ingress):
    engines = Engines([ActorDiedError()], [BROKEN])
    with pytest.raises(RequestError, match="being replaced"):
        [event async for event in ingress(engines).generate_stream(ASK)]


async def test_limits_that_change_hold_for_bodies_too(ingress):
    front = ingress(Engines())
    assert front.max_body_bytes == SETTINGS.limits.max_body_bytes
    policy = SETTINGS.policy.changed({"limits": {"max_body_bytes": 2048, "max_upload_bytes": 4096}})
    front._pools["flux"].watch.last = replace(STATUS, policy=policy)
    assert front.max_body_bytes == 2048
    assert front.max_upload_bytes == 4096
    assert front.limits_of(None).max_upload_bytes == 4096


async def test_another_models_name_is_refused_before_any_engine_is_there(ingress, monkeypatch):
    front = ingress(Engines())

    async def never(patience_s: float) -> EngineStatus:
        raise RequestError(503, "no engine", None, "not_ready", 5.0)

    monkeypatch.setattr(front._pools["flux"].watch, "serving", never)
    with pytest.raises(RequestError, match="it has 'flux'") as caught:
        await front.generate(ASK.model_copy(update={"model": "dall-e-3"}))
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    with pytest.raises(RequestError, match="no engine"):
        await front.generate(ASK.model_copy(update={"model": "flux"}))
