"""Ranks that die or hang: noticed in time, replaced in the same place, no job lost, the next picture bit-equal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from raycache.gang import Gang, GangBroken, GangRestarting
from tests.serving.conftest import wait_until
from tests.serving.test_gang_draws import job

LONG = 1500  # steps: seconds of work


@pytest.fixture(scope="module")
def gang(local_ray, gang_settings) -> Iterator[Gang]:
    settings = gang_settings(reliability={"watchdog_floor_s": 2.0, "max_restarts": 3})
    gang = Gang(settings, name="faults")
    gang.start()
    yield gang
    gang.shutdown()


@pytest.fixture(scope="module")
def reference(gang: Gang) -> np.ndarray:
    return gang.submit(job()).future.result(60).images


def pid_of(gang: Gang, rank: int) -> int:
    return gang.status().ranks[rank]["pid"]


def test_death_of_an_idle_rank(gang: Gang, reference: np.ndarray):
    old = [pid_of(gang, 0), pid_of(gang, 1)]
    os.kill(old[1], signal.SIGKILL)
    assert wait_until(lambda: not gang.status().ready) < 1.0
    assert gang.status().faults[-1].startswith("death")
    output = gang.submit(job()).future.result(90)
    np.testing.assert_array_equal(output.images, reference)
    assert gang.status().restarts == 1
    assert not any(psutil.pid_exists(pid) for pid in old)


def test_death_in_a_job_is_retried_and_the_queue_waits(gang: Gang, reference: np.ndarray):
    told: list[int] = []
    before = gang.status().restarts
    running = gang.submit(job(steps=300), on_progress=lambda progress: told.append(progress.step))
    queued = gang.submit(job())
    hasty = gang.submit(job(), deadline=time.monotonic() + 250)
    wait_until(lambda: len(told) > 3)
    os.kill(pid_of(gang, 0), signal.SIGKILL)
    assert wait_until(lambda: not gang.status().ready) < 1.0
    assert running.future.result(240).images.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(queued.future.result(30).images, reference)
    np.testing.assert_array_equal(hasty.future.result(30).images, reference)
    assert told == sorted(set(told)), "a job drawn again does not tell its first steps twice"
    assert gang.status().restarts == before + 1


def test_a_stopped_rank_is_a_hang(gang: Gang, reference: np.ndarray, caplog: pytest.LogCaptureFixture):
    gang.submit(job()).future.result(30)  # the shape is known: its patience is the floor
    running = gang.submit(job(steps=LONG), deadline=time.monotonic() + 4)
    wait_until(lambda: gang.status().ranks[0].get("step", 0) > 3)
    os.kill(pid_of(gang, 1), signal.SIGSTOP)
    assert 1.5 < wait_until(lambda: not gang.status().ready) < 4.0
    with pytest.raises(GangRestarting) as caught:  # its deadline leaves no time to draw it again
        running.future.result(60)
    assert caught.value.retry_after_s > 0
    np.testing.assert_array_equal(gang.submit(job()).future.result(90).images, reference)
    assert "Stacks of rank 0" in caplog.text
    assert "all_to_all" in caplog.text, "rank 0's stack shows the collective it waited in"


def test_restarts_are_bounded(gang: Gang):
    """The fourth fault is one too many for ``max_restarts: 3``."""
    while (before := gang.status().restarts) < 3:  # where this test runs alone
        os.kill(pid_of(gang, 0), signal.SIGKILL)
        wait_until(lambda: gang.status().restarts > before and gang.status().ready, 90)
    gang.check_health()
    queued = gang.submit(job(steps=LONG))
    behind = gang.submit(job())
    wait_until(lambda: gang.status().ranks[0].get("step", 0) > 3)
    pids = [pid_of(gang, 0), pid_of(gang, 1)]
    os.kill(pids[1], signal.SIGKILL)
    for handle in (queued, behind, gang.submit(job())):
        with pytest.raises(GangRestarting):
            handle.future.result(10)
    with pytest.raises(GangBroken, match="max_restarts"):
        gang.check_health()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    with pytest.raises(GangRestarting):
        gang.submit(job()).future.result(1)
