"""2,100 hostile requests to the whole ingress over a fake engine: no 500, and every refusal says what was wrong.

The same requests each time. `HOSTILE=20 pytest tests/unit/ingress/test_hostile.py` sends 20 times as many, others
each time; what it finds becomes a case of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from raycache.ingress.ingress import Ingress
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.schemas import EngineStatus, GenerationRequest, GenerationResult, ProgressEvent
from raycache.settings import AppSettings
from tests.helpers.hostile import URL, Hostile, bodies, check, oddities

SETTINGS = AppSettings.model_validate(
    {"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 2}, "limits": {"max_body_bytes": 20_000}}
)
STATUS = EngineStatus(
    "r", True, 0, False, 0.0, {"ranks": []}, Capabilities("noise", 57, 4, 64, "FluxPipeline", 16), SETTINGS.policy
)


#: How many times the usual number of requests, drawn by chance; 0: the usual ones.
MORE = int(os.environ.get("HOSTILE", "0"))


class FakeEngine:
    """A handle that draws black images at once, and counts them."""

    def __init__(self) -> None:
        self.drawn = 0
        self.generate = SimpleNamespace(remote=self._generate)
        self.generate_stream = SimpleNamespace(remote=self._stream)

    def broadcast(self, method: str, caller: str) -> SimpleNamespace:
        async def results(**_: object) -> list[EngineStatus]:
            return [STATUS]

        return SimpleNamespace(results_async=results)

    def options(self, stream: bool) -> FakeEngine:
        return self

    def _result(self, order: GenerationRequest) -> GenerationResult:
        self.drawn += 1
        return GenerationResult(images=[np.zeros((16, 16, 3), np.uint8)] * order.n, seeds=list(range(order.n)))

    def _generate(self, order: GenerationRequest, caller: str) -> asyncio.Future[GenerationResult]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(self._result(order))
        return answer

    def _stream(self, order: GenerationRequest, caller: str) -> AsyncIterator[ProgressEvent | GenerationResult]:
        return _Stream([ProgressEvent(1, 1, [False], [None]), self._result(order)])


class _Stream:
    def __init__(self, events: list[ProgressEvent | GenerationResult]) -> None:
        self._events = iter(events)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> ProgressEvent | GenerationResult:
        try:
            return next(self._events)
        except StopIteration:
            raise StopAsyncIteration from None

    def cancel(self) -> None: ...


class Application:
    """The ingress on a loop of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.engine = FakeEngine()
        self._runner.run(self._start())

    async def _start(self) -> None:
        self.ingress = Ingress(SETTINGS, {"flux": self.engine}, {"flux": [{"CPU": 1.0}]})
        transport = httpx.ASGITransport(self.ingress.__serve_build_asgi_app__(), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def send(self, request: Hostile) -> httpx.Response:
        return self._runner.run(
            self.client.request(request.method, request.path, content=request.body, headers=request.headers)
        )

    def close(self) -> None:
        self.ingress._polling.cancel()
        self._runner.close()


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    application = Application()
    yield application
    application.close()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "count"), [(bodies, 1600), (oddities, 500)])
def test_nothing_that_is_sent_is_our_failure(application: Application, strategy: Callable, count: int):
    document = application.send(Hostile("GET", "/openapi.json", b"")).json()
    drawn = application.engine.drawn
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=count * max(MORE, 1),
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(document))
    def attack(request: Hostile) -> None:
        try:
            response = application.send(request)
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
            return  # a client that cannot even say it
        statuses[response.status_code] += 1
        check(request, response.status_code, response.headers.get("content-type", ""), response.text)

    attack()
    assert statuses.total() > 0.8 * count
    if strategy is bodies:
        assert statuses[200] > 100, "some must get through, or nothing behind the front door was tried"
        assert statuses[400] > 500
        assert application.engine.drawn > drawn + 50
    else:
        assert {404, 405, 400} <= set(statuses)  # 415 comes by chance; `test_http.py` asks for it
    good = Hostile("POST", URL, b'{"prompt": "a"}', {"content-type": "application/json"})
    assert application.send(good).status_code == 200, "still well"


@pytest.mark.parametrize("field", ["n", "num_inference_steps", "seed", "timeout_s", "guidance_scale", "width"])
@pytest.mark.parametrize("value", ["1" + "0" * 25, "1" + "0" * 400, "9" * 4000, "9" * 5000, "-1" + "0" * 400])
def test_whole_numbers_of_any_length_are_refused_in_a_short_line(application: Application, field: str, value: str):
    """Python's integers have no end, and a float's conversion raises beyond 1e308."""
    body = f'{{"prompt": "a", "{field}": {value}}}'.encode()
    response = application.send(Hostile("POST", URL, body, {"content-type": "application/json"}))
    assert response.status_code == 400
    assert len(json.loads(response.text)["error"]["message"]) < 300
