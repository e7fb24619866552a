"""Admission in front of a gang with scripted answers, with a clock that the test advances."""

import itertools

import numpy as np
import pytest

from cache_core import NoCacheOptions
from raycache.engine.admission import Admission, Ticket
from raycache.gang.costs import Costs, Work
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.protocol.errors import RequestError
from raycache.protocol.job import JobOutput
from raycache.settings import AppSettings
from raycache.size import Size

__all__ = ["SMALL", "Clock", "Gang", "Queue", "admission", "learned", "refusal", "teach"]

SMALL = Work(Size(128, 128), 1, 10, NoCacheOptions())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Gang:
    """What the gang reports; it has started only the jobs that the test names."""

    jobs: tuple[JobState, ...] = ()
    accounts, ready_in_s = Accounts(), 0.0
    rules = Rules(scheduling="fifo", max_active=1)

    def __call__(self) -> Outlook:
        return Outlook(self.jobs, self.accounts, self.rules, self.ready_in_s)


class Queue(Admission):
    """Admission in front of such a gang."""

    gang: Gang

    def __init__(self, policy, clock: Clock) -> None:
        self.gang, self.names = Gang(), itertools.count()
        super().__init__(policy, Costs(), self.gang, clock)

    def let_in(self, work: Work = SMALL, timeout_s: float = 300.0, **more) -> Ticket:
        return self.admit(f"job {next(self.names)}", work, timeout_s, **more)

    def loaded(self) -> tuple[int, int, float]:
        load = self.load()
        return load.queued, load.running, round(load.wait_s, 6)


def admission(clock: Clock | None = None, **policy) -> Queue:
    base = AppSettings.model_validate({"model": {"path": "noise"}}).policy
    return Queue(base.model_copy(update=policy), clock or Clock())


def teach(queue: Admission, seconds: float, cold: bool = False) -> None:
    phases = {"encode_s": 0.1 * seconds, "denoise_s": 0.8 * seconds, "decode_s": 0.1 * seconds}
    queue._costs.learn(SMALL, JobOutput(np.zeros((1, 1, 1, 3), np.uint8), None, **phases), cold=cold)


def learned(seconds: float, times: int = 2, **kwargs) -> Queue:
    queue = admission(**kwargs)
    for _ in range(times):
        teach(queue, seconds)
    return queue


def refusal(queue: Queue, work: Work = SMALL, timeout_s: float = 300.0, **more) -> RequestError:
    with pytest.raises(RequestError) as caught:
        queue.let_in(work, timeout_s, **more)
    return caught.value
