"""Processes of ranks, from the operating system."""

from __future__ import annotations

from contextlib import suppress

import psutil


def rank_processes() -> set[int]:
    """Every rank process of this test run's own Ray."""
    pids = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RankActor"):
                pids.add(process.pid)
    return pids
