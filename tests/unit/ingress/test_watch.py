"""What the ingress believes of its engines: silence is not death, and death is not believed for long."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from raycache.cluster.capacity import Gangs
from raycache.ingress import engine_watch
from raycache.ingress.engine_watch import EngineWatch
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import EngineStatus
from raycache.rebuilds import SERVE_S
from raycache.settings import AppSettings

POLICY = AppSettings.model_validate({"model": {"path": "noise"}}).policy
ALIVE = EngineStatus("r1", True, 0, False, 0.0, {}, Capabilities("noise", 57, 4, 64, "FluxPipeline", 16), POLICY)
ONE = Gangs("flux", [{"CPU": 1.0}])
NONE_THERE = DeploymentUnavailableError(DeploymentID("Engine", "flux"))


class FakeHandle:
    """Answers ``broadcast`` as told."""

    answer: object

    def broadcast(self, method: str, caller: str | None):
        assert method == "poll"
        return self

    async def results_async(self, **_):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def _woken(self, caller: str | None) -> EngineStatus:
        if self.wakes is None:
            await asyncio.sleep(60)
        return self.wakes

    wakes: EngineStatus | None = None

    @property
    def poll(self):
        return SimpleNamespace(remote=self._woken)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_watch, "time", clock)
    return clock


@pytest.fixture
def handle():
    return FakeHandle()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(engine_watch, "_STATUS_TIMEOUT_S", 0.05)


@pytest.fixture
def watch(handle, clock):
    return EngineWatch(handle, ONE)


async def told(watch, handle, answer) -> list[EngineStatus]:
    handle.answer = answer
    await watch.refresh()
    return watch.statuses


async def test_nobody_is_there_at_first(watch, handle):
    for answer in (NONE_THERE, TimeoutError()):
        assert await told(watch, handle, answer) == []
        with pytest.raises(RequestError) as caught:
            await watch.serving()
        assert caught.value.status == 503
        assert caught.value.retry_after_s


async def test_the_first_request_to_a_new_engine_need_not_wait_for_a_poll(watch, handle):
    assert await told(watch, handle, NONE_THERE) == []
    handle.answer = [ALIVE]
    assert await watch.serving() is ALIVE


async def test_a_crowd_without_an_engine_asks_together(watch, handle, monkeypatch):
    polls = []

    async def slow(**_):
        polls.append(1)
        await asyncio.sleep(0.01)
        raise NONE_THERE

    monkeypatch.setattr(handle, "results_async", slow)
    await watch.refresh()
    answers = await asyncio.gather(*(watch.serving() for _ in range(50)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {RequestError}
    assert len(polls) == 3, "one before they came, one for the first, one for who came while it was under way"


async def test_silence_is_not_death(watch, handle, clock):
    assert await told(watch, handle, [ALIVE]) == [ALIVE]
    clock.now += 14
    assert await told(watch, handle, TimeoutError()) == [ALIVE]
    assert await watch.serving() is ALIVE
    clock.now += 2
    assert await told(watch, handle, TimeoutError()) == []


async def test_one_engine_that_hangs_does_not_hide_the_others(watch, handle, clock):
    await told(watch, handle, [ALIVE, ALIVE])
    handle.wakes = ALIVE
    clock.now += 14
    assert await told(watch, handle, TimeoutError()) == [ALIVE, ALIVE]
    for _ in range(3):
        clock.now += 16
        assert await told(watch, handle, TimeoutError()) == [ALIVE]
    clock.now += 14
    assert await told(watch, handle, TimeoutError()) == [ALIVE]


async def test_a_change_of_config_is_not_death(watch, handle, clock):
    await told(watch, handle, [ALIVE])
    clock.now += 1
    assert await told(watch, handle, NONE_THERE) == [ALIVE]
    clock.now += 2
    assert await told(watch, handle, NONE_THERE) == []


async def test_dead_engines_are_gone_at_once(watch, handle):
    await told(watch, handle, [ALIVE])
    assert await told(watch, handle, [ActorDiedError(), ALIVE]) == [ALIVE]
    for death in (ActorDiedError(), OutOfMemoryError("the memory monitor killed it")):
        await told(watch, handle, [ALIVE])
        assert await told(watch, handle, [death]) == []


async def test_an_old_answer_is_asked_for_again(watch, handle, clock):
    await told(watch, handle, [ALIVE])
    handle.answer = [changed := replace(ALIVE, queued=1)]
    clock.now += 2
    assert await watch.serving() is ALIVE
    clock.now += 2
    assert await watch.serving() is changed


async def test_the_reason_is_given_when_it_is_known(watch, handle):
    await told(watch, handle, NONE_THERE)
    watch.shortage = "this cluster has no GPU"
    with pytest.raises(RequestError, match="no GPU"):
        await watch.serving()


async def test_a_request_wakes_an_engine_where_all_may_sleep(handle, clock):
    watch = EngineWatch(handle, replace(ONE, number=0))
    await told(watch, handle, NONE_THERE)
    with pytest.raises(RequestError) as caught:
        await watch.serving(patience_s=0.05)
    assert (caught.value.status, watch.last) == (503, None)
    handle.wakes = ALIVE
    assert await watch.serving(patience_s=5) is ALIVE
    await told(watch, handle, [ALIVE])
    clock.now += 3
    assert await told(watch, handle, NONE_THERE) == []
    assert watch.last is ALIVE, "it is judged by what the last engine said"


async def test_without_an_engine_the_next_one_is_expected_as_soon_as_the_last_was_ready(watch, handle, clock):
    """It was 5 s, whatever a start takes."""
    handle.answer = [replace(ALIVE, start_s=90.0)]
    await watch.refresh()
    handle.answer = [ActorDiedError()]
    clock.now += 10
    await watch.refresh()
    with pytest.raises(RequestError) as caught:
        await watch.serving()
    assert caught.value.retry_after_s == pytest.approx(SERVE_S + 90 - 10)
    clock.now += 190
    assert watch.ready_in_s == 100, "it takes far longer than the last one did"


async def test_a_first_start_is_expected_to_go_on_for_half_of_what_it_took(watch, handle, clock):
    assert watch.ready_in_s == 5
    clock.now += 60
    assert watch.ready_in_s == 30


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ([Gangs("two", [{"CPU": 1.0}])], None),
        ([Gangs("two", [{"CPU": 1.5}])], "not all together"),
        ([Gangs("two", [{"CPU": 1.5}], 0)], None),  # they sleep
        ([Gangs("two", [{"CPU": 9.0}])], None),  # what cannot be there takes no room
    ],
)
def test_engines_of_other_models_take_room(handle, monkeypatch, beside, told):
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    watch = EngineWatch(handle, ONE, beside=beside)
    watch._explain()
    assert (watch.shortage is None) if told is None else told in watch.shortage
    small = EngineWatch(handle, Gangs("flux", [{"CPU": 5.0}]), beside=beside)
    small._explain()
    assert small.shortage.startswith("model 'flux': this cluster cannot hold")
