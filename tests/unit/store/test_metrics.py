"""What the store counts, from the arrival of jobs to their end and after it."""

from __future__ import annotations

from collections import defaultdict

import pytest

from raycache.protocol.errors import RequestError
from raycache.protocol.schemas import GenerationRequest
from raycache.store_metrics import StoreMetrics
from tests.helpers.store_jobs import FULL, LOST, Start, over, under_way
from tests.helpers.stored import Clock, FakeAsker, video_request

Told = dict[str, list[float]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """By name and labels the values that a metric was given, one after the other."""
    values: Told = defaultdict(list)

    def heard(self: object, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        name = self.info["name"].removeprefix("raycache_stored_")  # type: ignore[attr-defined]
        values[" ".join([name, *(tags or {}).values()])].append(value)

    for spec, method in (
        (StoreMetrics.ended, "inc"),
        (StoreMetrics.jobs, "set"),
        (StoreMetrics.run_seconds, "observe"),
    ):
        monkeypatch.setattr(spec.kind, method, heard)
    return values


async def test_a_job_from_its_arrival_to_its_removal(start: Start, clock: Clock, told: Told):
    asker = FakeAsker(FULL, LOST)
    asker.go.clear()
    store = await start(asker, expires_s=100)
    clock.now += 5
    job = await store.submit("video", video_request(), "blue")
    await under_way(store, job)
    assert told["retries_total wan queue_full"] == [1]
    assert told["wait_seconds wan"] == [pytest.approx(0, abs=0.01)]
    asker.go.set()
    done = await over(store, job)
    assert told["retries_total wan engine_died"] == [1]
    assert told["ended_total wan completed "] == [1]
    assert told["run_seconds wan"] == [pytest.approx(done.completed_at - done.begun_at)]
    assert len(told["wait_seconds wan"]) == 1, "of its first try"
    store._metrics.kept(store._index)
    assert told["jobs wan completed"][-1] == 1
    assert told["bytes"][-1] == done.bytes > 0
    clock.now += 101
    await store.sweep()
    store._metrics.kept(store._index)
    assert told["removed_total wan expired"] == [1]
    assert (told["jobs wan completed"][-1], told["bytes"][-1]) == (0, 0), "not what was there last"


async def test_failures_deletions_and_stores_that_die(start: Start, told: Told):
    asker = FakeAsker(RequestError(500, "no", None, "job_failed"))
    store = await start(asker)
    failed = await over(store, await store.submit("image", GenerationRequest(prompt="a"), None))
    assert told["ended_total wan failed job_failed"] == [1]
    assert "run_seconds wan" not in told
    await store.delete("image", failed.id, None)
    assert told["removed_total wan deleted"] == [1]
    asker.go.clear()
    jobs = [await store.submit("video", video_request(), None) for _ in range(2)]
    for job in jobs:
        await under_way(store, job)
    await start(FakeAsker())
    assert told["retries_total wan interrupted"] == [1, 1]


def test_models_are_told_of_from_the_start(told: Told):
    StoreMetrics(["a", "b"]).kept([])
    statuses = ("queued", "in_progress", "completed", "failed")
    assert told == {"bytes": [0], **{f"jobs {model} {status}": [0] for model in "ab" for status in statuses}}
