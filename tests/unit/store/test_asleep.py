"""Jobs for a model whose engines sleep: kept at once, judged by the first that wakes. How long kept jobs may take."""

from __future__ import annotations

from typing import Any

import pytest

from raycache.ingress.engine_pools import EnginePools
from raycache.metrics import IngressMetrics
from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import EngineStatus, GenerationRequest
from raycache.settings import AppSettings
from raycache.store_settings import StoreSettings
from tests.helpers.store_jobs import Start, over
from tests.helpers.stored import EDITS, SETTINGS, VIDEOS, Clock, FakeAsker, until, video_request


def sleeping() -> FakeAsker:
    asker = FakeAsker()
    asker.awake.clear()
    return asker


async def test_a_job_is_kept_while_all_sleep_and_made_when_one_wakes(start: Start, clock: Clock):
    asker = sleeping()
    store = await start(asker)
    job = await store.submit("video", video_request(num_frames=None, seconds=1, size=None, timeout_s=500), "blue")
    assert (job.status, job.judged, job.model) == ("queued", False, "wan")
    seed = job.request["seed"]
    clock.now += 100
    store = await start(again := sleeping())  # also in the store that takes its place
    assert store.find("video", job.id, "blue").request["seed"] == seed
    again.awake.set()
    done = await over(store, job)
    assert (done.status, done.judged, done.attempts) == ("completed", True, 1)
    assert done.request["timeout_s"] == 500, "as it was asked for, not what was left of it"
    assert {name: done.request[name] for name in ("seed", "num_frames", "fps", "size")} == {
        "seed": seed,
        "num_frames": 17,
        "fps": 16.0,
        "size": "64x48",
    }
    assert "seconds" not in done.request
    assert again.keys == ["blue"]
    assert again.asked[0].timeout_s == pytest.approx(400, abs=0.1)


async def test_what_an_engine_refuses_once_it_is_awake_is_told_of_the_job(start: Start):
    asker = sleeping()
    asker.model = EDITS
    store = await start(asker)
    job = await store.submit("video", video_request(), None)
    asker.awake.set()
    failed = await over(store, job)
    assert (failed.status, failed.error.type, failed.attempts) == ("failed", "invalid_request_error", 0)
    assert "text-to-video" in failed.error.message


async def test_a_job_for_whom_nobody_wakes_in_time(start: Start, clock: Clock):
    store = await start(asker := sleeping())
    gone = await store.submit("video", video_request(), None)
    await until(lambda: store._runner._active)
    await store.delete("video", gone.id, None)
    asker.order = lambda request: nobody(clock)  # type: ignore[method-assign]
    late = await over(store, await store.submit("video", video_request(timeout_s=50), None))
    assert late.error.code == "deadline_exceeded"


async def nobody(clock: Clock) -> Any:
    clock.now += 60
    raise RequestError(503, "no engine is ready", None, "not_ready", 5.0)


def pools(status: EngineStatus | None) -> tuple[EnginePools, list[str]]:
    """Engines of one model which have said ``status``, as the store asks them; and what they are asked."""
    asked: list[str] = []

    class Handle:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            raise AssertionError(name)

    scaled = SETTINGS.model_dump(exclude_unset=True) | {"autoscaling": {"min_replicas": 0, "max_replicas": 1}}
    settings = AppSettings.model_validate(scaled | {"store": {"folder": "/kept", "max_timeout_s": 9999}})
    longest_s = settings.store.longest_timeout_s
    made = EnginePools(settings, {"wan": Handle()}, {"wan": [{"CPU": 1.0}]}, IngressMetrics(), longest_s)
    made["wan"].watch.last = status
    return made, asked


async def test_nobody_is_woken_to_judge():
    asker, asked = pools(None)
    assert await asker.judge(video_request()) is None
    for fields, param in (({"prompt": " "}, "prompt"), ({"num_inference_steps": 5000}, "num_inference_steps")):
        with pytest.raises(RequestError) as refused:
            await asker.judge(video_request(**fields))
        assert refused.value.param == param
    with pytest.raises(RequestError) as refused:
        await asker.judge(video_request(model="another"))
    assert refused.value.status == 404
    assert not asked


async def test_a_kept_job_has_a_limit_of_its_own():
    status = EngineStatus("r", True, 0, False, 0.0, {}, VIDEOS, SETTINGS.policy)
    for told in (status, None):
        asker, asked = pools(told)
        assert asker.longest_timeout_s("wan") == 86_400, "the store's own for a job that names none"
        order = await asker.judge(video_request(timeout_s=80_000))
        assert (order and order.timeout_s) == (80_000 if told else None)
        with pytest.raises(RequestError, match=r"86401 is more than the 86400 allowed here") as refused:
            await asker.judge(GenerationRequest(prompt="a", timeout_s=86_401))
        assert refused.value.param == "timeout_s"
        assert not asked
    assert SETTINGS.policy.max_timeout_s == 3600


def test_the_longest_deadline_of_a_kept_job():
    assert StoreSettings(folder="/kept").longest_timeout_s == 604_800
    assert StoreSettings(folder="/kept", max_timeout_s=5, timeout_s=9).longest_timeout_s == 9
