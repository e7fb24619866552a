"""How long and how much a store keeps, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import pytest

from raycache.protocol.errors import RequestError
from tests.helpers.store_jobs import Start, over, under_way
from tests.helpers.stored import Clock, FakeAsker, until, video_request


async def test_deleting_drops_a_job_on_the_engine_before_it_is_answered(start: Start, tmp_path: Path):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker, max_active=1)
    running, waiting = [await store.submit("video", video_request(), None) for _ in range(2)]
    await under_way(store, running)
    await store.delete("video", waiting.id, None)
    await store.delete("video", running.id, None)
    assert (asker.under_way, asker.dropped, len(asker.asked)) == (0, 1, 1)
    assert not list((tmp_path / "jobs/jobs").iterdir())
    asker.go.set()
    done = await over(store, await store.submit("video", video_request(), None))
    await store.delete("video", done.id, None)
    for job in (running, waiting, done):
        with pytest.raises(RequestError) as gone:
            store.find("video", job.id, None)
        assert gone.value.status == 404
    assert not list((tmp_path / "jobs/jobs").iterdir())


async def test_who_leaves_while_a_job_is_kept_or_deleted_leaves_nothing_half_done(start: Start, tmp_path: Path):
    """Serve cancels what a client who left had asked for; what memory and disk say must not differ after that."""
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker)

    async def left(call: Coroutine[object, object, object]) -> None:
        task = asyncio.create_task(call)
        while not store._under_way:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not store._under_way)

    await left(store.submit("video", video_request(), None))
    (job,) = store.page("video", None, None, 10, "asc").jobs
    assert [folder.name for folder in (tmp_path / "jobs/jobs").iterdir()] == [job.id]
    await left(store.delete("video", job.id, None))
    assert not list((tmp_path / "jobs/jobs").iterdir())
    assert not (await start(FakeAsker())).page("video", None, None, 10, "asc").jobs


async def test_what_has_expired_is_gone_also_from_the_disk(start: Start, tmp_path: Path, clock: Clock):
    store = await start(FakeAsker(RequestError(500, "no", None, "job_failed")), expires_s=100)
    failed, done = [await over(store, await store.submit("video", video_request(), None)) for _ in range(2)]
    assert (failed.status, done.status) == ("failed", "completed")
    clock.now += 90
    late = await over(store, await store.submit("video", video_request(), None))
    await store.sweep()
    assert len(list((tmp_path / "jobs/jobs").iterdir())) == 3
    clock.now += 20
    await store.sweep()
    assert [folder.name for folder in (tmp_path / "jobs/jobs").iterdir()] == [late.id]
    clock.now += 1000
    store = await start(FakeAsker())
    await until(lambda: not list((tmp_path / "jobs/jobs").iterdir()))


async def test_what_cannot_be_removed_now_is_kept_and_removed_later(
    start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    store = await start(FakeAsker(), expires_s=100)
    job = await over(store, await store.submit("video", video_request(), "blue"))

    def full(id: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store._folder, "remove", full)
        with pytest.raises(RequestError) as refused:
            await store.delete("video", job.id, "blue")
        assert (refused.value.status, refused.value.code) == (500, "not_deleted")
        clock.now += 101
        await store.sweep()
        store.check_health()
        assert store.find("video", job.id, "blue") == job
    await store.sweep()
    with pytest.raises(RequestError, match=job.id):
        store.find("video", job.id, "blue")


async def test_a_job_under_way_does_not_expire(start: Start, clock: Clock):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker, expires_s=1)
    job = await under_way(store, await store.submit("video", video_request(), None))
    clock.now += 1000
    await store.sweep()
    assert store.find("video", job.id, None).status == "in_progress"


async def test_a_key_sees_its_own_jobs_only(start: Start):
    store = await start(FakeAsker())
    job = await over(store, await store.submit("video", video_request(), "blue"))
    for key in ("green", None):
        for refused in (
            lambda: store.find("video", job.id, key),  # noqa: B023
            lambda: store.find("image", job.id, "blue"),
        ):
            with pytest.raises(RequestError) as gone:
                refused()
            assert gone.value.status == 404
        for call in (store.delete("video", job.id, key), store.read("video", job.id, key, "video", 0, 1)):
            with pytest.raises(RequestError) as gone:
                await call
            assert gone.value.status == 404
        assert not store.page("video", key, None, 10, "desc").jobs
    assert store.page("video", "blue", None, 10, "desc").jobs == [job]
    assert not store.page("image", "blue", None, 10, "desc").jobs


async def test_jobs_are_bounded_by_key_and_in_all(start: Start):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker, max_jobs=3, max_jobs_per_key=2)
    jobs = await asyncio.gather(*(store.submit("video", video_request(), "blue") for _ in range(2)))
    with pytest.raises(RequestError, match="this key has the 2 jobs") as refused:
        await store.submit("video", video_request(), "blue")
    assert (refused.value.status, refused.value.retry_after_s) == (429, None)
    results = await asyncio.gather(
        *(store.submit("video", video_request(), "green") for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["RequestError", "StoredJob"]
    (full,) = [result for result in results if isinstance(result, RequestError)]
    assert (full.status, full.code) == (507, "store_full")
    await store.delete("video", jobs[0].id, "blue")
    await store.submit("video", video_request(), "blue")


async def test_results_are_bounded_in_bytes(start: Start):
    store = await start(FakeAsker())
    size = (await over(store, await store.submit("video", video_request(seed=1), None))).bytes
    store = await start(FakeAsker(), max_bytes=int(2.5 * size), max_bytes_per_key=1)
    assert (await over(store, await store.submit("video", video_request(seed=1), None))).status == "completed"
    third = await over(store, await store.submit("video", video_request(seed=1), None))
    assert (third.status, third.error.code) == ("failed", "store_full")
    mine = await over(store, await store.submit("video", video_request(seed=1), "blue"))
    assert (mine.status, mine.error.code) == ("failed", "too_many_stored")
    store = await start(FakeAsker(), max_bytes=2 * size)
    with pytest.raises(RequestError, match=r"bytes of results that may be stored.*expires at") as refused:
        await store.submit("video", video_request(), None)
    assert refused.value.status == 507


async def test_a_disk_that_is_full_is_said(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asker = FakeAsker()
    asker.go.clear()
    store = await start(asker)
    job = await under_way(store, await store.submit("video", video_request(), None))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._folder, "adopt", full)
    asker.go.set()
    assert (await over(store, job)).error.code == "store_full"
    monkeypatch.setattr(store._folder, "write", full)
    with pytest.raises(RequestError) as refused:
        await store.submit("video", video_request(), None)
    assert refused.value.status == 507
    assert [folder.name for folder in (tmp_path / "jobs/jobs").iterdir()] == [job.id]
