"""Distinguishes a process that hangs from one that gets no CPU.

On a machine with more work than cores a step may take many times longer than before. Linux counts for each thread the
time in which it was ready but not running; a process that sleeps, waits in a collective or is stopped has none.
"""

from __future__ import annotations

import os

__all__ = ["cpu_wait_s"]


def cpu_wait_s(pid: int) -> float:
    """Seconds that the threads of process ``pid`` together have waited for a CPU; 0 if unknown."""
    total, folder = 0, f"/proc/{pid}/task"
    try:
        threads = os.listdir(folder)
    except OSError:  # it has ended, or this is not Linux
        return 0.0
    for thread in threads:
        try:
            with open(f"{folder}/{thread}/schedstat", "rb") as file:
                total += int(file.read().split()[1])  # time on a CPU, time waiting for one (both ns), slices
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended, or a kernel without these counters
    return total / 1e9
