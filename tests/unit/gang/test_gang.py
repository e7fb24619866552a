"""The gang's own thread over ranks that do what a test says: whatever they do, each job gets its answer."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import pytest

from raycache.gang import gang as module
from raycache.gang.gang import Gang
from raycache.gang.step_timeouts import StepTimeouts
from raycache.gang.worker_group import Fault
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.job_errors import (
    DeadlineExceeded,
    GangBroken,
    GangRestarting,
    GangStartError,
    JobCancelled,
    JobFailed,
)
from raycache.protocol.tick import Called, Tick, TickReport
from raycache.settings import AppSettings
from tests.helpers.jobs import make_job

SETTINGS = AppSettings.model_validate({"model": {"path": "noise"}})
POISON = 13


class Life:
    """In place of an incarnation: a fault in every call that ``POISON`` is in, else images."""

    calls: list[tuple[int, ...]]  # the seeds in each
    gate: threading.Event
    timeouts_s: list[float]
    rebuilt: threading.Event  # until then there are no new ranks
    start_error: Exception | None = None
    end_error: Exception | None = None
    stages: ClassVar[dict[str, float]] = {}
    gpus: ClassVar[list[list[str]]] = []
    ticks, free_bytes = 3, None

    def __init__(self, *_: object) -> None:
        self.timeouts = StepTimeouts(SETTINGS.reliability)
        self._sent: deque[Tick] = deque()
        self._left: dict[str, int] = {}
        self._jobs: dict[str, Job] = {}

    def assemble(self, source: object, timeout_s: float) -> tuple[tuple[str, str], Capabilities]:
        self.timeouts_s.append(timeout_s)
        if source is not None:
            assert self.rebuilt.wait(10)
        if self.start_error is not None:
            raise self.start_error
        return ("", "noise"), Capabilities("noise", 57, 4, 64, "FluxPipeline", 16)

    def send(self, tick: Tick) -> None:
        self._sent.append(tick)

    def receive(self, meanwhile: Callable[[], float]) -> TickReport:
        assert self.gate.wait(10)
        tick = self._sent.popleft()
        told = TickReport(tick.number)
        for name in tick.abort:
            self._left.pop(name, None)
        for job in tick.start:
            self._jobs[job.id], self._left[job.id] = job, job.num_inference_steps
            told.started_s[job.id] = 0.001
        for names in tick.calls:
            seeds = tuple(image.seed for name in names for image in self._jobs[name].images)
            self.calls.append(seeds)
            if POISON in seeds:
                raise Fault("error", "rank 1 raised")
            told.calls.append(Called(names, 0.001, (1.0,) * len(names)))
            for name in names:
                self._left[name] -= 1
                told.progress[name] = [Progress(self._jobs[name].num_inference_steps - self._left[name], 4, [], [])]
                if not self._left[name]:
                    told.done.append(name)
        for name in tick.end:
            assert self._left.pop(name) == 0
            told.outputs[name] = JobOutput(np.zeros((1, 16, 16, 3), np.uint8), None, 0.1, 0.1, 0.1)
        return told

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
        "OwnLife", (Life,), {"calls": [], "timeouts_s": [], "gate": threading.Event(), "rebuilt": threading.Event()}
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


def job(seed: int, steps: int = 4) -> Job:
    return make_job(str(seed), seeds=(seed,), steps=steps)


def test_a_job_that_breaks_gangs_takes_no_other_along(gang: Gang, life: type[Life]):
    handles = {seed: gang.submit(job(seed)) for seed in (1, POISON, 3)}
    life.gate.set()
    for seed in (1, 3):
        assert handles[seed].future.result(10).images.shape == (1, 16, 16, 3)
    with pytest.raises(JobFailed, match=r"rank 1 raised.*tried 3 times"):
        handles[POISON].future.result(10)
    assert gang.status().restarts == 3
    assert gang.status().jobs == []
    assert all(len(seeds) == 1 for seeds in life.calls[-8:]), "after a fault each is drawn with no other"


def test_many_are_under_way_at_once_and_each_hears_of_itself(gang: Gang, life: type[Life]):
    told: dict[int, list[int]] = {seed: [] for seed in range(5)}
    handles = [
        gang.submit(job(seed), on_progress=lambda progress, seed=seed: told[seed].append(progress.step))
        for seed in range(5)
    ]
    life.gate.set()
    for handle in handles:
        handle.future.result(10)
    assert list(told.values()) == [[1, 2, 3, 4]] * 5
    order = [seed for seeds in life.calls for seed in seeds]
    assert order != sorted(order), "not one after the other"


def test_two_jobs_of_one_name_are_refused(gang: Gang):
    gang.submit(job(1))
    with pytest.raises(ValueError, match="job '1' is already in the queue"):
        gang.submit(job(1))


def test_one_that_is_aborted_or_late_leaves_at_the_next_tick(gang: Gang, life: type[Life]):
    late = gang.submit(job(1, steps=10**6), deadline=time.monotonic() + 0.5)
    gone = gang.submit(job(2, steps=10**6))
    life.gate.set()
    while len(gang.status().jobs) < 2:
        time.sleep(0.01)
    gone.abort("the client went away")
    with pytest.raises(JobCancelled, match="went away"):
        gone.future.result(10)
    with pytest.raises(DeadlineExceeded):
        late.future.result(10)
    gang.submit(job(3)).future.result(10)


def test_it_says_how_far_each_job_is_and_no_more(gang: Gang, life: type[Life]):
    handle = gang.submit(make_job("1", seeds=(1, 2), steps=10**6))
    life.gate.set()
    while not (told := gang.status().progress) or told[0].step < 3:
        time.sleep(0.01)
    (one,) = told
    assert (one.size, one.images, one.steps) == (str(handle.job.size), 2, 10**6)
    assert asdict(one).keys() == {"size", "images", "step", "steps"}
    handle.abort("enough")
    with pytest.raises(JobCancelled):
        handle.future.result(10)
    while gang.status().jobs:
        time.sleep(0.01)
    assert gang.status().progress == []


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
    assert life.timeouts_s[:2] == [1800.0, 150.0], "a rank that hangs while it loads again is found in minutes"


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
