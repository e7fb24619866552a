"""Processes that need not import torch: forked from one that has, so each costs half a second of CPU instead of six.

Two such servers, because strings hash otherwise in each: ranks that went by the order of a set would part here as they
would in production. A server has one thread, which it checks: whatever else it had would be missing in its children.
It ends when its standard input does, and so with the process that started it, however that ends.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SERVERS", "Forked", "ask", "fork_servers", "ray_python"]

_ROOT = Path(__file__).resolve().parents[2]
SERVERS = 2
#: Of the environment: the servers' sockets, for the children of whoever keeps them.
_VARIABLE = "RAYCACHE_TEST_FORK_SERVERS"
#: Seconds until a server must have imported everything: generous, for a busy machine.
_START_S = 240.0


@dataclass
class Forked:
    """A process that a server has forked; whoever has it is not its parent.

    Attributes:
        pid: its process id.
        handle: a file descriptor of this very process, never of a later one with its number; readable once it ended.
    """

    pid: int
    handle: int

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def join(self) -> None:
        """Wait until it ended, and let go of it."""
        ended = select.poll()
        ended.register(self.handle, select.POLLIN)
        ended.poll()
        os.close(self.handle)


@functools.cache
def fork_servers() -> tuple[str, ...]:
    """The sockets of :data:`SERVERS` servers, which this process, or one above it, keeps from the first call on.

    Raises:
        RuntimeError: one of them ended, or has not started in time.
    """
    if _VARIABLE in os.environ:
        return tuple(os.environ[_VARIABLE].split(os.pathsep))
    folder = tempfile.TemporaryDirectory(prefix="fork-")
    paths = tuple(f"{folder.name}/{number}" for number in range(SERVERS))
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_server", path],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(number)},
            start_new_session=True,
        )
        for number, path in enumerate(paths)
    ]
    _kept.extend((folder, *processes))
    end = time.monotonic() + _START_S
    while not all(map(os.path.exists, paths)):
        ended = [process for process in processes if process.poll() is not None]
        if ended or time.monotonic() > end:
            raise RuntimeError(f"a fork server {'has ended, see above' if ended else 'has not started in time'}")
        time.sleep(0.05)
    os.environ[_VARIABLE] = os.pathsep.join(paths)
    return paths


#: Whose end would end the servers.
_kept: list[object] = []


def ray_python() -> str:
    """For a Ray runtime environment's ``py_executable``: workers are forked, too."""
    return " ".join([sys.executable, "-S", str(_ROOT / "tests/helpers/fork_worker.py"), *fork_servers(), "--"])


def ask(path: str, argv: Sequence[str], fds: Sequence[int], environment: dict[str, str], cwd: str) -> Forked:
    """A process that runs ``python argv...`` as any other would.

    Args:
        path: of a server's socket.
        argv: as behind ``python``: a script, or ``-m`` and a module, then arguments.
        fds: its file descriptors 0, 1, 2, ...
        environment: the whole of it.
        cwd: where it runs.

    Raises:
        OSError: there is no such server.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        request = json.dumps({"argv": list(argv), "environment": environment, "cwd": cwd})
        socket.send_fds(connection, [request.encode()], list(fds))
        pid, handles, _, _ = socket.recv_fds(connection, 32, 1)
    if not pid:
        raise ConnectionError(f"the fork server at {path} has ended")
    return Forked(int(pid), handles[0])
