"""Several models behind one ingress: each request goes to the engines of its model, and to no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from raycache.ingress.api import build_http_app
from raycache.ingress.ingress import Ingress
from raycache.metrics import IngressMetrics
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import EngineStatus, GenerationRequest
from raycache.settings import ServiceSettings
from tests.helpers.fake_service import FakeService
from tests.unit.ingress.test_ingress import ASK, REFUSED, RESULT, Engines

SERVICE = ServiceSettings.model_validate(
    {
        "models": [
            {"model": {"name": "one", "path": "noise"}, "limits": {"max_timeout_s": 300, "max_body_bytes": 5000}},
            {
                "model": {"name": "org/two", "path": "demo"},
                "parallel": {"ranks_per_replica": 2},
                "limits": {"max_steps": 9, "max_body_bytes": 2000},
                "defaults": {"num_inference_steps": 4},
                "reliability": {"request_timeout_s": 30},
            },
        ],
        "aliases": {"gpt-image-1": "org/two", "dall-e/3": "one"},
    }
)
FLUX, WIDE = Capabilities("noise", 57, 4, 64, "FluxPipeline", 16), Capabilities("noise", 40, 4, 98, "OtherPipeline", 32)
NAMES = {None: "one", "one": "one", "org/two": "org/two", "gpt-image-1": "org/two", "dall-e/3": "one"}


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """Ray's, which the ingress looks at where a model has no engine: they hold all that is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 9.0}}])
        yield


class Pool(Engines):
    """Engines of one model of the service."""

    def __init__(self, name: str, model: Capabilities, *answers: list[object], there: bool = True) -> None:
        super().__init__(*answers)
        (settings,) = [one for one in SERVICE.engines if one.model.name == name]
        self.told = [EngineStatus(name, True, 0, False, 0.0, {}, model, settings.policy, model_name=name)] * there

    def broadcast(self, method: str, caller: str) -> Any:
        handle = super().broadcast(method, caller)
        inner = handle.results_async

        async def results(**how: object) -> list[object]:
            return self.told if await inner(**how) else []

        handle.results_async = results
        return handle


def service(**pools: Pool) -> tuple[Ingress, Pool, Pool]:
    one = pools.get("one") or Pool("one", FLUX, *[[RESULT]] * 9)
    two = pools.get("two") or Pool("org/two", WIDE, *[[RESULT]] * 9)
    bundles = {name: [{"CPU": 1.0}] for name in ("one", "org/two")}
    return Ingress(SERVICE, {"one": one, "org/two": two}, bundles), one, two


@pytest.mark.parametrize(("asked", "meant"), NAMES.items(), ids=str)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_request_goes_to_the_engines_of_its_model(asked: str | None, meant: str, streamed: bool):
    ingress, one, two = service()
    ask = ASK.model_copy(update={"model": asked, "size": "64x64"})
    if streamed:
        assert [event async for event in ingress.generate_stream(ask)] == [RESULT]
    else:
        assert await ingress.generate(ask) is RESULT
    to, others = (two, one) if meant == "org/two" else (one, two)
    assert [order.model for order in to.orders] == [meant], "an alias does not reach the engine"
    assert not others.orders


async def test_each_model_judges_by_its_own_limits_and_capabilities():
    ingress, one, two = service()

    async def refused(**fields: Any) -> str:
        with pytest.raises(RequestError) as caught:
            await ingress.generate(GenerationRequest(prompt="a circle", **fields))
        assert caught.value.status == 400
        return caught.value.message

    await ingress.generate(GenerationRequest(prompt="a circle", size="48x64", model="one", num_inference_steps=10))
    assert "32" in await refused(size="48x64", model="org/two")
    assert "9 allowed" in await refused(size="64x64", model="gpt-image-1", num_inference_steps=10)
    assert "300 allowed" in await refused(size="64x64", model="dall-e/3", timeout_s=300.5)
    await ingress.generate(
        GenerationRequest(prompt="x", size="64x64", model="org/two", timeout_s=600, num_inference_steps=9)
    )
    assert [len(pool.orders) for pool in (one, two)] == [1, 1]
    assert two.orders[0].timeout_s == 600


async def test_what_one_model_lost_or_refused_is_not_asked_of_another():
    for failure, code in ((ActorDiedError(), "engine_died"), (REFUSED, "queue_full")):
        ingress, one, two = service(one=Pool("one", FLUX, [failure], [failure]))
        with pytest.raises(RequestError) as caught:
            await ingress.generate(ASK)
        assert caught.value.code == code
        assert one.orders
        assert not two.orders
        assert await ingress.generate(ASK.model_copy(update={"model": "org/two", "size": "64x64"})) is RESULT


async def test_a_model_without_engines_leaves_the_other_alone():
    ingress, *_ = service(one=Pool("one", FLUX, there=False))
    with pytest.raises(RequestError) as caught:
        await ingress.generate(ASK)
    assert (caught.value.status, caught.value.code) == (503, "not_ready")
    assert await ingress.generate(ASK.model_copy(update={"model": "org/two", "size": "64x64"})) is RESULT
    cards = {card.name: card for card in await ingress.models()}
    assert [(name, card.ready, card.reason) for name, card in cards.items()] == [
        ("one", False, "starting"),
        ("org/two", True, None),
    ]
    assert [status.model_name for status in await ingress.status()] == ["org/two"]


@pytest.mark.slow
@given(st.text(max_size=12).filter(lambda name: name not in NAMES))
async def test_an_unknown_name_reaches_no_engine_and_is_told_what_there_is(name: str):
    ingress, one, two = service()
    ingress._polling.cancel()
    with pytest.raises(RequestError) as caught:
        await ingress.generate(ASK.model_copy(update={"model": name}))
    error = caught.value
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert all(repr(known) in error.message for known in NAMES if known)
    with pytest.raises(RequestError):
        ingress.longest_timeout_s(name)
    assert not one.orders + two.orders


async def test_bounds_that_come_before_the_body_is_known():
    ingress, *_ = service()
    assert ingress.max_body_bytes == 5000, "the largest: whose it is stands in it"
    assert [ingress.longest_timeout_s(name) for name in ("one", "org/two", "gpt-image-1")] == [300.0, 3600.0, 3600.0]
    changed = SERVICE.engines[1].policy.changed({"limits": {"max_body_bytes": 9000, "max_timeout_s": 40}})
    ingress._pools["org/two"].watch.last = replace(Pool("org/two", WIDE).told[0], policy=changed)
    assert (ingress.max_body_bytes, ingress.longest_timeout_s("org/two")) == (9000, 40)


async def test_readiness_is_measured_for_each_model(monkeypatch: pytest.MonkeyPatch):
    measured: dict[str, float] = {}
    monkeypatch.setattr(
        IngressMetrics.model_ready.kind,
        "set",
        lambda self, value, tags=None: measured.update({(tags or {}).get("model", "all"): value}),
    )
    ingress, *_ = service(one=Pool("one", FLUX, there=False))
    for pool in ingress._pools.values():
        await pool.watch.refresh()
    await _one_round(ingress)
    assert measured == {"one": 0.0, "org/two": 1.0, "all": 1.0}


async def _one_round(ingress: Ingress) -> None:
    """Until every model has been asked once more by the loops that ask for ever."""
    for _ in range(20):
        await asyncio.sleep(0.01)
    ingress._polling.cancel()


@pytest.fixture
async def http() -> Any:
    ingress, *_ = service(one=Pool("one", FLUX, there=False))
    transport = httpx.ASGITransport(ingress.__serve_build_asgi_app__())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await ingress._pools["org/two"].watch.refresh()
        yield client
    ingress._polling.cancel()


async def test_the_list_of_models_tells_what_each_can_do(http: httpx.AsyncClient):
    listed = {model["id"]: model for model in (await http.get("/v1/models")).json()["data"]}
    assert list(listed) == ["one", "org/two", "gpt-image-1", "dall-e/3"]
    one, two = listed["one"], listed["org/two"]
    assert {(model["object"], model["owned_by"]) for model in listed.values()} == {("model", "raycache")}
    assert (one["ready"], one["reason"], one["capabilities"]) == (False, "starting", None), "nobody has told them yet"
    assert (one["default"], one["aliases"], one["ranks"], one["presets"]) == (True, ["dall-e/3"], 4, ["exact"])
    assert (two["ready"], two["reason"], two["default"], two["ranks"]) == (True, None, False, 2)
    assert two["capabilities"]["pipeline"] == "OtherPipeline"
    assert two["capabilities"]["size_multiple"] == 32
    assert two["capabilities"]["text_tokens"] == 98
    assert two["capabilities"]["tasks"] == ["text-to-image"]
    assert set(two["presets"]) >= {"exact", "fast"}, "of the bundled model"
    assert two["limits"]["max_steps"] == 9
    assert two["limits"]["max_timeout_s"] == 3600
    assert "keys" not in two["limits"]
    assert two["defaults"]["size"] == "1024x1024"
    assert listed["gpt-image-1"] == {**two, "id": "gpt-image-1", "alias_of": "org/two"}


async def test_one_model_is_retrieved_by_each_of_its_names(http: httpx.AsyncClient):
    for model in (await http.get("/v1/models")).json()["data"]:
        assert (await http.get(f"/v1/models/{model['id']}")).json() == model
        assert (await http.get(f"/v1/models/{model['id'].replace('/', '%2F')}")).json() == model
    for unknown in ("two", "org", "org/two/", "gpt-image-2"):
        reply = await http.get(f"/v1/models/{unknown}")
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"
        assert "'one', 'org/two', 'gpt-image-1', 'dall-e/3'" in reply.json()["error"]["message"]


async def test_readyz_has_each_model(http: httpx.AsyncClient):
    reply = await http.get("/readyz")
    body = reply.json()
    assert (reply.status_code, body["ready"], body["reason"]) == (200, True, None)
    assert body["models"] == {
        "one": {"ready": False, "reason": "starting"},
        "org/two": {"ready": True, "reason": None},
    }
    assert [engine["model_name"] for engine in body["engines"]] == ["org/two"]


@pytest.fixture
def single() -> Iterator[TestClient]:
    with TestClient(build_http_app(FakeService())) as client:
        yield client


def test_a_service_of_one_model_answers_probes_as_ever(single: TestClient):
    assert set(single.get("/readyz").json()) == {"ready", "reason", "pid", "engines"}
    (listed,) = single.get("/v1/models").json()["data"]
    assert (listed["id"], listed["default"], listed["aliases"]) == ("flux", True, [])


async def test_a_patient_header_is_no_more_than_its_model_allows(http: httpx.AsyncClient):
    ask = {"prompt": "a circle", "size": "64x64", "model": "gpt-image-1", "num_inference_steps": 3}
    reply = await http.post("/v1/images/generations", json=ask, headers={"x-request-timeout-seconds": "1e9"})
    assert reply.status_code == 200, reply.text
    reply = await http.post(
        "/v1/images/generations", json={**ask, "model": "x"}, headers={"x-request-timeout-seconds": "1"}
    )
    assert reply.json()["error"]["code"] == "model_not_found"
