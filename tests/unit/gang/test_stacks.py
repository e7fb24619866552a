"""Stacks of a hanging rank reach the engine, and a killed engine leaves no file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from raycache.gang.stacks import StacksFile

RANK = """
import faulthandler, signal, sys, time
stacks = open(sys.argv[1], "w")
faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
def stuck_in_a_collective():
    print("up", flush=True)
    time.sleep(60)
stuck_in_a_collective()
"""
ENGINE = """
import sys, time
from raycache.gang.stacks import StacksFile
files = [StacksFile() for _ in range(4)]
for file in files:
    print(file.path, file=open(file.path, "w"), flush=True)
print("up", flush=True)
time.sleep(60)
"""


def started(code: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    assert process.stdout.readline() == "up\n"
    return process


def test_what_another_process_wrote_is_read_while_it_hangs():
    file = StacksFile()
    rank = started(RANK, file.path)
    try:
        assert (file.size(), file.read()) == (0, "")
        os.kill(rank.pid, signal.SIGUSR1)
        end = time.monotonic() + 20
        while "stuck_in_a_collective" not in file.read():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert file.size() > 0
    finally:
        rank.kill()
        rank.communicate()


def test_a_killed_engine_leaves_nothing_in_the_temporary_folder(tmp_path: Path):
    engine = started(ENGINE, TMPDIR=str(tmp_path))
    engine.kill()
    engine.communicate()
    assert list(tmp_path.iterdir()) == []
