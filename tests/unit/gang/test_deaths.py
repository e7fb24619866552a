"""What Ray may say of a rank that is gone: each is a fault that the gang recovers from, and none ends the gang."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError

from raycache.gang import incarnation
from raycache.gang import worker_group as actors
from raycache.gang.incarnation import Incarnation
from raycache.gang.worker_group import Fault, WorkerGroup
from raycache.protocol.job import GangStartError, Job
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 1}})
JOB = Job("1", "", 64, 64, (7,), 4, 3.5, SETTINGS.cache)
DEATHS = [ActorDiedError(), OutOfMemoryError("the memory monitor killed it"), NodeDiedError("gone")]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray in which every answer is there at once, and is ``error``."""

    def get(ref: object) -> None:
        raise fake.error

    fake = SimpleNamespace(wait=lambda refs, timeout: (refs, []), get=get, error=None)
    monkeypatch.setattr(actors, "ray", fake)
    monkeypatch.setattr(incarnation, "ray", fake)
    return fake


@pytest.fixture
def ranks() -> WorkerGroup:
    """One rank that has been asked for its heartbeat."""
    ranks = object.__new__(WorkerGroup)
    ranks._settings, ranks._name, ranks._workers = SETTINGS, "g", [SimpleNamespace(asked="asked")]
    return ranks


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_each_kind_of_death_is_a_fault(ray: SimpleNamespace, ranks: WorkerGroup, error: RayError):
    ray.error = error
    with pytest.raises(Fault, match="rank 0 died") as caught:
        ranks.last_news()
    assert caught.value.kind == "death"
    life = object.__new__(Incarnation)
    life._actors = SimpleNamespace(generate=lambda job: {"ref": 0}, detector=SimpleNamespace(ranks=[None]))
    life.timeouts = SimpleNamespace(begin=lambda: None)
    with pytest.raises(Fault, match=f"rank 0 died in job 1 .{type(error).__name__}") as caught:
        life.draw(JOB, lambda events: None, lambda: False)
    assert caught.value.kind == "death"
    with pytest.raises(GangStartError, match="a rank died while it should load"):
        ranks._all(["ref"], time.monotonic() + 5, "load", lambda: None)


def test_a_rank_that_cannot_say_how_it_is(ray: SimpleNamespace, ranks: WorkerGroup):
    ray.error = RayTaskError("heartbeat", "traceback", RuntimeError("CUDA error"))
    with pytest.raises(Fault, match="rank 0 cannot say how it is: CUDA error") as caught:
        ranks.last_news()
    assert caught.value.kind == "error"
