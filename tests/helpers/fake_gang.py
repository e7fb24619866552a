"""A gang whose jobs end when a test says so, and an engine's calls on it."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from raycache.engine.engine import Engine
from raycache.gang.costs import Costs, work_of
from raycache.gang.outlook import Outlook
from raycache.gang.schedule import Accounts, JobState, Rules
from raycache.protocol.capabilities import Capabilities
from raycache.protocol.job import GangStatus, JobOutput
from raycache.protocol.resolve import resolve
from raycache.protocol.schemas import GenerationRequest, ResolvedRequest
from raycache.settings import AppSettings

SETTINGS = AppSettings.model_validate(
    {
        "model": {"path": "noise"},
        "parallel": {"ranks_per_replica": 2},
        "reliability": {"max_queued_requests": 1},
        "warmup": [{"size": "128x128", "n": 2}],
    }
)
MODEL = Capabilities("noise", 57, 4, 64, "FluxPipeline", 16)


class _Handle(SimpleNamespace):
    __hash__ = object.__hash__


class FakeGang:
    """Jobs end when the test says so, and their costs are learned as in a gang; its warm-up is over.

    It runs one job after the other, and reports as many steps of each as the test has set.
    """

    def __init__(self, settings: AppSettings) -> None:
        self.jobs = []
        self.aborts: list[str] = []
        self.stopped = False
        self.handed_back = 0
        self.sick: Exception | None = None
        self.costs = Costs()
        self._told: dict[str, JobState] = {}
        self._outlook = Outlook((), Accounts(), Rules(scheduling="fifo", max_active=1))

    def start(self) -> None: ...

    def submit(self, job, *, deadline=None, on_progress=None, caller="", weight=1.0):
        future: Future[JobOutput] = Future()

        def report(event) -> None:
            self._tell({**self._told, job.id: replace(self._told[job.id], calls_done=event.step)})
            on_progress(event)

        told = report if on_progress else None
        running = {
            "job": job,
            "deadline": deadline,
            "on_progress": told,
            "caller": caller,
            "weight": weight,
            "future": future,
        }
        self.jobs.append(SimpleNamespace(costs=self.costs, **running))
        times = {"arrived": time.monotonic(), "deadline": deadline or math.inf}
        self._tell(
            {**self._told, job.id: self.costs.job_state(job.id, work_of(job), caller=caller, weight=weight, **times)}
        )
        future.add_done_callback(lambda _: self._tell({k: v for k, v in self._told.items() if k != job.id}))
        return _Handle(future=future, abort=self.aborts.append)

    def _tell(self, jobs: dict[str, JobState]) -> None:
        self._told, self._outlook = jobs, replace(self._outlook, jobs=tuple(jobs.values()))

    def outlook(self) -> Outlook:
        return replace(self._outlook, ready_in_s=self.status().ready_in_s)

    def status(self) -> GangStatus:
        rank = {"rank": 0, "pid": 1, "memory": 5, "device_memory": 0, "collective_wait_s": 0.1}
        return GangStatus("replica-1", True, 0, 0, [], ranks=[rank])

    def hand_back(self) -> int:
        self.handed_back += 1
        return 0

    def check_health(self) -> None:
        if self.sick:
            raise self.sick

    def capabilities(self):
        return MODEL

    def shutdown(self, drain_s: float = 0) -> None:
        self.stopped = True


def output(job, **changes) -> JobOutput:
    images = np.zeros((len(job.images), job.size.height, job.size.width, 3), np.uint8)
    fields = {"images": images, "report": None, "encode_s": 0.1, "denoise_s": 0.7, "decode_s": 0.2, "warnings": []}
    return JobOutput(**{**fields, **changes})


def finish(running) -> None:
    drawn = output(running.job)
    running.costs.learn(work_of(running.job), drawn)
    running.future.set_result(drawn)


def order(**fields) -> ResolvedRequest:
    request = GenerationRequest(**{"prompt": "a circle", "size": "128x128", "seed": 7, **fields})
    return resolve(request, SETTINGS.policy, MODEL, model_name="flux", ranks=2)


async def started(engine: Engine, **fields):
    """A running call, and the gang's job for it."""
    before = len(engine._gang.jobs)
    call = asyncio.create_task(engine.generate(order(**fields)))
    async with asyncio.timeout(5):
        while len(engine._gang.jobs) == before and not call.done():
            await asyncio.sleep(0)
    return call, engine._gang.jobs[-1]
