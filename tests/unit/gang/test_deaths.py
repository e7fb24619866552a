"""What Ray may say of a rank that is gone: each is a fault that the gang recovers from, and none ends the gang."""

from __future__ import annotations

import time
from collections import deque
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError

from raycache.gang import incarnation
from raycache.gang import worker_group as actors
from raycache.gang.incarnation import Incarnation, agreed
from raycache.gang.worker_group import Fault, WorkerGroup
from raycache.protocol.heartbeat import Failure
from raycache.protocol.job_errors import GangStartError
from raycache.protocol.tick import Tick, TickReport
from raycache.settings import AppSettings
from tests.helpers.jobs import make_job

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "parallel": {"ranks_per_replica": 1}})
JOB = make_job()
DEATHS = [ActorDiedError(), OutOfMemoryError("the memory monitor killed it"), NodeDiedError("gone")]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray in which every answer is there at once, and is ``error``."""

    def get(ref: object) -> None:
        raise fake.error

    fake = SimpleNamespace(wait=lambda refs, timeout, num_returns=1: (refs, []), get=get, error=None)
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
        ranks.poll(None)
    assert caught.value.kind == "death"
    life = object.__new__(Incarnation)
    life._sent, life._drawing = deque([(Tick(0), {"ref": 0})]), {"1": JOB}
    with pytest.raises(Fault, match=f"rank 0 died in job 1 .{type(error).__name__}") as caught:
        life.receive()
    assert caught.value.kind == "death"
    with pytest.raises(GangStartError, match="a rank died when it had to load"):
        ranks._all(["ref"], time.monotonic() + 5, "load", lambda: None)


def test_a_rank_that_cannot_say_how_it_is(ray: SimpleNamespace, ranks: WorkerGroup):
    ray.error = RayTaskError("heartbeat", "traceback", RuntimeError("CUDA error"))
    with pytest.raises(Fault, match="heartbeat of rank 0 failed: CUDA error") as caught:
        ranks.poll(None)
    assert caught.value.kind == "error"


def failed(kind: str, step: int = 3, phase: str = "denoise") -> TickReport:
    return TickReport(0, failures=[Failure(kind, ("1",), phase, step, "MemoryError", "on purpose", "")])


@pytest.mark.parametrize(
    "reports",
    [
        [failed("error"), TickReport(0)],
        [TickReport(0), failed("error")],
        [failed("error"), failed("error", step=4)],
        [failed("group"), failed("group")],
        [TickReport(0, skipped=True), TickReport(0)],
    ],
    ids=["one", "another", "elsewhere", "the group", "skipped"],
)
def test_ranks_that_do_not_say_the_same_are_a_fault(reports: list[TickReport]):
    with pytest.raises(Fault) as caught:
        agreed(reports)
    assert caught.value.kind == "error"


@pytest.mark.parametrize(
    "reports",
    [
        [failed("error"), failed("error")],
        [failed("together"), failed("together")],
        [failed("error", phase="decode"), TickReport(0)],  # each decodes rows of its own
        [TickReport(0, skipped=True), TickReport(0, skipped=True)],
    ],
    ids=["error", "together", "decode", "skipped"],
)
def test_ranks_that_agree_live_on(reports: list[TickReport]):
    assert agreed(reports) == reports[0]
