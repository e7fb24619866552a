"""The gang's own thread over ranks that do what a test says: whatever they do, each job gets its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest

from cache_core import NoCacheOptions
from raycache.gang import gang as module
from raycache.gang.gang import Gang
from raycache.gang.worker_group import Fault
from raycache.protocol.job import GangBroken, GangRestarting, GangStartError, Job, JobFailed, JobOutput, ModelFacts
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}, "parallel": {"max_batch_size": 4}})
POISON = 13


class Life:
    """In place of an incarnation: a fault in every drawing that has ``POISON`` among its seeds, else pictures."""

    drawn: list[tuple[int, ...]]
    gate: threading.Event
    timeouts: list[float]
    rebuilt: threading.Event  # until then there are no new ranks
    start_error: Exception | None = None
    end_error: Exception | None = None
    stages: ClassVar[dict[str, float]] = {}

    def __init__(self, *_: object) -> None: ...

    def assemble(self, source: object, timeout_s: float) -> tuple[tuple[str, str], ModelFacts]:
        self.timeouts.append(timeout_s)
        if source is not None:
            assert self.rebuilt.wait(10)
        if self.start_error is not None:
            raise self.start_error
        return ("", "noise"), ModelFacts("noise", 57, 4, 64, "FluxPipeline", 16)

    def draw(self, job: Job, tell: Callable, unwanted: Callable) -> JobOutput:
        assert self.gate.wait(10)
        self.drawn.append(job.seeds)
        if POISON in job.seeds:
            raise Fault("error", "rank 1 raised")
        count = len(job.seeds)
        report = {"options": {}, "steps": [], "totals": {"cached_steps": [0] * count}}
        report["totals"]["computed_block_fraction"] = [1.0] * count
        return JobOutput(np.zeros((count, 16, 16, 3), np.uint8), report, 0.1, 0.1, 0.1, [[] for _ in job.seeds])

    def idle(self) -> None: ...

    def ranks(self) -> list[object]:
        return []

    def end(self, *, stacks: bool = False) -> None:
        if self.end_error is not None:
            raise self.end_error


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> type[Life]:
    """A class of its own for each test."""
    own = type(
        "OwnLife", (Life,), {"drawn": [], "timeouts": [], "gate": threading.Event(), "rebuilt": threading.Event()}
    )
    own.rebuilt.set()
    monkeypatch.setattr(module, "Incarnation", own)
    return own


@pytest.fixture
def gang(life: type[Life]) -> Iterator[Gang]:
    gang = Gang(SETTINGS, name="g")
    gang.start()
    yield gang
    gang.shutdown()


def job(seed: int, width: int = 64) -> Job:
    return Job(str(seed), "", width, 64, (seed,), 4, 3.5, NoCacheOptions())


def test_a_job_that_breaks_gangs_takes_no_batch_mate_along(gang: Gang, life: type[Life]):
    first = gang.submit(job(0, width=128))  # of another size: no mate
    mates = [gang.submit(job(seed)) for seed in (1, POISON, 3)]
    life.gate.set()
    assert first.future.result(10)
    assert [mates[k].future.result(10).batch_size for k in (0, 2)] == [0, 0]
    with pytest.raises(JobFailed, match=r"rank 1 raised.*drawn 2 times"):
        mates[1].future.result(10)
    assert life.drawn[-5:] == [(1, POISON, 3), (1,), (POISON,), (POISON,), (3,)]


def test_it_says_how_long_new_ranks_will_take(gang: Gang, life: type[Life]):
    assert gang.status().ready_in_s == 0.0
    gang._rebuilds._start_s = 30.0
    life.rebuilt.clear()
    handle = gang.submit(job(POISON))
    life.gate.set()
    while gang.status().ready:
        time.sleep(0.01)
    assert 20 < gang.status().ready_in_s < 30
    life.rebuilt.set()
    with pytest.raises(JobFailed):
        handle.future.result(10)
    assert life.timeouts[:2] == [1800.0, 150.0], "a rank that hangs while it loads again is found in minutes"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_ranks_that_cannot_even_be_killed_leave_nobody_waiting(gang: Gang, life: type[Life]):
    life.end_error = OSError("Ray is gone")
    handles = [gang.submit(job(seed)) for seed in (POISON, 1)]
    life.gate.set()
    for handle in handles:
        with pytest.raises(GangRestarting):
            handle.future.result(10)
    gang._thread.join(10)
    with pytest.raises(GangBroken):
        gang.check_health()
    with pytest.raises(GangRestarting):
        gang.submit(job(2)).future.result(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_start_that_fails_twice_over_is_told(life: type[Life]):
    life.start_error, life.end_error = GangStartError("no model"), OSError("Ray is gone")
    with pytest.raises(GangStartError, match="no model"):
        (gang := Gang(SETTINGS, name="g")).start()
    gang._thread.join(10)
