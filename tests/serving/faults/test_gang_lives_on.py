"""Ranks that die or hang: noticed in time, replaced in the same place, no job lost, the next image bit-equal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from raycache.gang.cpu_wait import cpu_wait_s
from raycache.gang.gang import Gang
from raycache.protocol.job_errors import GangBroken, GangRestarting
from raycache.settings import AppSettings
from tests.serving.conftest import LONG, job, wait_until


def pid_of(gang: Gang, rank: int) -> int:
    return gang.status().ranks[rank]["pid"]


def hit(gang: Gang, rank: int, blow: signal.Signals) -> tuple[float, float]:
    """Seconds until the gang has noticed, and of them those in which this process, where its thread is, got no CPU."""
    starved, at = cpu_wait_s(os.getpid()), time.time()
    os.kill(pid_of(gang, rank), blow)
    wait_until(lambda: (last := gang.status().last_recovery) is not None and last.noticed_at > at)
    return gang.status().last_recovery.noticed_at - at, cpu_wait_s(os.getpid()) - starved


def test_death_of_an_idle_rank(gang: Gang, reference: np.ndarray):
    before, old = gang.status().restarts, [pid_of(gang, 0), pid_of(gang, 1)]
    noticed_s, starved_s = hit(gang, 1, signal.SIGKILL)
    assert noticed_s - starved_s < 1.0
    assert gang.status().faults[-1].startswith("death")
    output = gang.submit(job()).future.result(90)
    np.testing.assert_array_equal(output.images, reference)
    assert gang.status().restarts == before + 1
    assert not any(psutil.pid_exists(pid) for pid in old)


def test_death_in_a_job_is_retried_and_the_queue_waits(gang: Gang, reference: np.ndarray):
    told: list[int] = []
    before = gang.status().restarts
    running = gang.submit(job(steps=600), on_progress=lambda progress: told.append(progress.step))
    queued = gang.submit(job())
    hasty = gang.submit(job(), deadline=time.monotonic() + 250)
    wait_until(lambda: len(told) > 3)
    noticed_s, starved_s = hit(gang, 0, signal.SIGKILL)
    assert noticed_s - starved_s < 1.0
    assert running.future.result(240).images.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(queued.future.result(60).images, reference)
    np.testing.assert_array_equal(hasty.future.result(60).images, reference)
    assert told == list(range(1, 601)), "a job drawn again does not tell its first steps twice"
    assert gang.status().restarts == before + 1


def test_a_stopped_rank_is_a_hang(gang: Gang, reference: np.ndarray, caplog: pytest.LogCaptureFixture):
    gang.submit(job()).future.result(60)  # the shape is known: its time-out is the floor
    # Time enough to notice the hang, and too little for new ranks after that.
    running = gang.submit(job(steps=LONG), deadline=time.monotonic() + max(4.0, gang._rebuilds.expected_s))
    wait_until(lambda: gang.status().ranks[0].get("step", 0) > 3)
    noticed_s, starved_s = hit(gang, 1, signal.SIGSTOP)
    assert noticed_s > 1.0
    assert noticed_s - starved_s < 4.0
    assert gang.status().faults[-1].startswith("hang")
    with pytest.raises(GangRestarting) as caught:
        running.future.result(60)
    assert caught.value.retry_after_s > 0
    np.testing.assert_array_equal(gang.submit(job()).future.result(90).images, reference)
    assert "Stacks of rank 0" in caplog.text
    waits = ("all_to_all", "all_reduce")
    assert any(wait in caplog.text for wait in waits), "rank 0's stack shows the collective that it waited in"


def test_restarts_are_bounded(local_ray: None, gang_settings: Callable[..., AppSettings]):
    """How they are counted, and the window in which they are: `tests/unit/gang/test_recovery.py`."""
    gang = Gang(gang_settings(reliability={"max_restarts": 0}), name="bounded")
    gang.start()
    gang.check_health()
    queued, behind = (gang.submit(job(steps=LONG)) for _ in range(2))
    wait_until(lambda: gang.status().ranks[0].get("step", 0) > 3)
    pids = [pid_of(gang, 0), pid_of(gang, 1)]
    os.kill(pids[1], signal.SIGKILL)
    for handle in (queued, behind, gang.submit(job())):
        with pytest.raises(GangRestarting):
            handle.future.result(60)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    with pytest.raises(GangBroken, match="max_restarts"):
        gang.check_health()
    with pytest.raises(GangRestarting):
        gang.submit(job()).future.result(1)
