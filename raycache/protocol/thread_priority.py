"""Keeps threads at their scheduling policy across libraries that change it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["usual_priority"]


@contextmanager
def usual_priority() -> Iterator[None]:
    """Whatever is called inside starts and leaves no thread with a real-time priority.

    SVT-AV1 gives its caller and its own threads the highest real-time priority (SCHED_FIFO 99) wherever it may: as
    root, so in most containers. Such a thread takes its core from all other processes until it waits, its child
    processes inherit that, and the caller keeps it after the encoder is gone. Threads that had one before keep it.
    """
    if not hasattr(os, "sched_getscheduler"):  # not on Linux
        yield
        return
    before = _real_time()
    try:
        yield
    finally:
        for thread in _real_time() - before:
            with suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time() -> set[int]:
    """The threads of this process that have a real-time priority."""
    found = set()
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(OSError):
            if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                found.add(thread)
    return found
