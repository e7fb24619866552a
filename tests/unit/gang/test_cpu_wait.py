"""A process that gets no CPU is told from one that sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from raycache.gang.cpu_wait import cpu_wait_s

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not count")


@pytest.mark.slow
def test_a_starved_process_has_waited_and_a_sleeping_one_has_not():
    # Three that want the CPU of one: each must wait for the others.
    cpu = min(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    sleeps = "import time; print(flush=True); time.sleep(60)"
    idle = subprocess.Popen([sys.executable, "-c", sleeps], stdout=subprocess.PIPE)
    try:
        idle.stdout.readline()  # it has started, for which it may have waited long
        for process in busy:
            os.sched_setaffinity(process.pid, {cpu})
        time.sleep(1)
        before = {process.pid: cpu_wait_s(process.pid) for process in (*busy, idle)}
        time.sleep(2)
        waited = {pid: cpu_wait_s(pid) - seconds for pid, seconds in before.items()}
        assert min(waited[process.pid] for process in busy) > 0.5
        assert waited[idle.pid] < 0.2
    finally:
        for process in (*busy, idle):
            process.kill()
            process.wait()


def test_a_process_that_is_gone_has_waited_for_nothing():
    assert cpu_wait_s(2**22 + 1) == 0.0
