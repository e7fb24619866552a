"""Jobs from their request to their end, over engines that come, go and refuse."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import GenerationRequest
from raycache.store.job_store import JobStore
from raycache.store.runner import MOST_ATTEMPTS
from raycache.store_metrics import StoreMetrics
from tests.helpers.store_jobs import FULL, LOST, Start, over, under_way
from tests.helpers.stored import Clock, FakeAsker, settings_of, stopped, until, video_request


async def test_a_video_from_its_request_to_its_file(start: Start, clock: Clock):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker, expires_s=100)
    job = await store.submit("video", video_request(seed=7), "blue", ["a note"])
    assert (job.status, job.progress, job.owner, job.model) == ("queued", 0, "blue", "wan")
    begun = await under_way(store, job)
    await until(lambda: store.find("video", job.id, "blue").progress == 40)
    assert begun.completed_at is begun.expires_at is None
    asker.go.set()
    done = await over(store, job)
    assert (done.status, done.progress, done.attempts, done.error) == ("completed", 100, 1, None)
    assert done.expires_at - done.completed_at == pytest.approx(100)
    assert done.about["seeds"] == [7]
    assert done.about["warnings"] == ["a note", "odd"]
    video = done.files["video"]
    data = await store.read("video", job.id, "blue", "video", 0, video.bytes)
    assert data[4:8] == b"ftyp"
    assert len(data) == video.bytes
    assert await store.read("video", job.id, "blue", "video", 3, 5) == data[3:8]
    assert (await store.read("video", job.id, "blue", "thumbnail", 0, 999))[8:12] == b"WEBP"
    assert asker.keys == ["blue"], "the engine is asked in the name of the key"


async def test_images_are_kept_as_they_would_have_been_sent(start: Start):
    store = await start(FakeAsker())
    job = await store.submit("image", GenerationRequest(prompt="a", n=2, seed=3, output_format="webp"), None)
    done = await over(store, job)
    assert sorted(done.files) == ["0", "1"]
    assert done.about["size"] == "64x48"
    first, second = [await store.read("image", job.id, None, name, 0, 1 << 20) for name in "01"]
    assert first[8:12] == second[8:12] == b"WEBP"
    assert first != second


async def test_what_is_wrong_with_a_request_is_said_at_once(start: Start):
    store = await start(FakeAsker())
    with pytest.raises(RequestError, match=r"num_frames.*81") as refused:
        await store.submit("video", video_request(num_frames=82), None)
    assert refused.value.status == 400
    assert not list(store._index)


@pytest.mark.parametrize("answers", [[FULL], [FULL, FULL, FULL, FULL], [LOST], [LOST, FULL, LOST]])
async def test_a_job_waits_for_room_and_outlives_engines(start: Start, answers: list[RequestError]):
    asker = FakeAsker(*answers)
    store = await start(asker)
    done = await over(store, await store.submit("video", video_request(), None))
    assert done.status == "completed"
    assert done.attempts == 1 + answers.count(LOST)
    assert len({request.seed for request in asker.asked}) == 1, "the same video each time"


async def test_a_job_that_brings_engines_down_is_given_up(start: Start):
    asker = FakeAsker(*[LOST] * 10)
    store = await start(asker)
    done = await over(store, await store.submit("video", video_request(), None))
    assert (done.status, done.error.code) == ("failed", "engine_died")
    assert len(asker.asked) == MOST_ATTEMPTS


async def test_an_error_that_is_the_jobs_own_is_its_answer(start: Start):
    store = await start(FakeAsker(RequestError(500, "drawing failed", None, "job_failed"), ValueError("secret words")))
    jobs = [await store.submit("video", video_request(), None) for _ in range(2)]
    first, second = [await over(store, job) for job in jobs]
    assert first.error.model_dump() == {
        "message": "drawing failed",
        "code": "job_failed",
        "type": "server_error",
        "param": None,
    }
    assert second.error.code == "internal_error"
    assert "secret" not in second.error.message
    with pytest.raises(RequestError, match="has no 'video'"):
        await store.read("video", first.id, None, "video", 0, 1)


async def test_a_deadline_counts_from_the_arrival_whatever_is_waited_for(start: Start, clock: Clock):
    asker = FakeAsker(*[FULL] * 1000)
    store = await start(asker)
    job = await store.submit("video", video_request(timeout_s=50), None)
    await until(lambda: len(asker.asked) > 1)
    clock.now += 60
    done = await over(store, job)
    assert done.error.code == "deadline_exceeded"
    assert asker.asked[0].timeout_s == pytest.approx(50, abs=0.1)


async def test_a_store_that_died_goes_on_where_it_was(start: Start, clock: Clock):
    asker = FakeAsker()
    store = await start(asker, max_active=1)
    done = await over(store, await store.submit("video", video_request(seed=1), "blue"))
    asker.go.clear()
    running = await store.submit("video", video_request(seed=2), "blue")
    waiting = await store.submit("video", video_request(seed=3), None)
    await under_way(store, running)
    again = FakeAsker()
    again.go.clear()
    store = await start(again, max_active=1)
    assert store.find("video", done.id, "blue") == done
    assert store.find("video", waiting.id, None).status == "queued"
    again.go.set()
    assert (await over(store, running)).attempts == 2
    assert (await over(store, waiting)).attempts == 1
    assert [request.seed for request in again.asked] == [2, 3]


async def test_a_job_under_which_stores_die_is_given_up(start: Start, tmp_path: Path):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker)
    job = await store.submit("video", video_request(), None)
    record = tmp_path / "jobs/jobs" / job.id / "job.json"
    for attempt in range(1, MOST_ATTEMPTS + 1):
        await until(lambda: json.loads(record.read_text())["attempts"] == attempt)  # noqa: B023
        store = await start(asker)
    given_up = store.find("video", job.id, None)
    assert (given_up.status, given_up.error.code) == ("failed", "interrupted")


async def test_a_second_store_waits_for_the_first(start: Start, tmp_path: Path, clock: Clock):
    asker = FakeAsker()
    asker.go.clear()
    first = await start(asker)
    job = await first.submit("video", video_request(), None)
    await under_way(first, job)
    second = JobStore(settings_of(tmp_path / "jobs"), FakeAsker(), StoreMetrics(), clock)
    await asyncio.sleep(0.6)
    with pytest.raises(RequestError) as refused:
        second.find("video", job.id, None)
    assert (refused.value.status, refused.value.code) == (503, "store_starting")
    await stopped(first)
    await until(lambda: second._ours)
    assert (await over(second, job)).status == "completed"
    await stopped(second)


async def test_no_more_than_so_many_at_once_and_the_one_who_has_few_is_next(start: Start):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker, max_active=2)
    for seed in range(4):
        await store.submit("video", video_request(seed=seed), "blue")
    await until(lambda: asker.under_way == 2)
    await store.submit("video", video_request(seed=10), "green")
    await store.submit("video", video_request(seed=11, priority="low"), "red")
    asker.go.set()
    await until(lambda: len(asker.asked) == 6)
    assert asker.most == 2
    assert [request.seed for request in asker.asked][:2] == [0, 1]
    assert {request.seed for request in asker.asked[2:4]} >= {10}
    assert [request.seed for request in asker.asked].index(11) < 5, "before the third and fourth of one key"


async def test_no_prompt_is_in_a_log_or_in_what_a_job_prints(start: Start, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    store = await start(FakeAsker(RequestError(500, "no", None, "job_failed"), FULL))
    jobs = [await over(store, await store.submit("video", video_request(), None)) for _ in range(2)]
    assert jobs[0].request["prompt"] == "a secret circle", "the API tells it"
    folder = store._folder.path / "jobs" / jobs[1].id
    (folder / "job.json").write_text(json.dumps({"prompt": "a secret circle"}))
    store = await start(FakeAsker())
    assert "ignored" in caplog.text
    assert "secret" not in caplog.text + repr(jobs)


async def test_health_is_that_of_its_work(start: Start):
    store = await start(FakeAsker())
    store.check_health()
    await stopped(store)
    with pytest.raises(RuntimeError, match="has stopped"):
        store.check_health()
