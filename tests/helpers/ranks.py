"""Runs a function on N gloo ranks, each a process of its own, and collects what they return or raise."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from tests.helpers.forking import SERVERS, Forked, ask, fork_servers

__all__ = ["RankError", "run_ranks"]

#: Seconds that the other ranks have to answer after the first one failed: those blocked in a collective never will.
_GRACE_S = 5.0


class RankError(Exception):
    """A rank raised, died, or did not answer in time.

    Attributes:
        rank: the rank that failed.
        kind: class name of its exception; ``died`` or ``timeout`` if there was none.
    """

    def __init__(self, rank: int, kind: str, text: str) -> None:
        super().__init__(f"rank {rank}: {kind}\n{text}")
        self.rank, self.kind = rank, kind


def run_ranks(world_size: int, fn: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """Call ``fn(rank, world_size, *args)`` on every rank of a fresh gloo group.

    Args:
        world_size: number of processes; each runs with one torch thread.
        fn: a function at the top level of a module; it, ``args`` and its result must be picklable.
        timeout: seconds for everything, including the start of the processes; also the timeout of a collective.

    Returns:
        What each rank returned, in order of ranks.

    Raises:
        RankError: from the first rank that died, else from the first that failed. No process is left behind.
    """
    servers = fork_servers()
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryFile() as file, ExitStack() as ranks:
        pickle.dump((listener.getsockname()[1], world_size, timeout, fn, args), file)
        file.flush()
        ends = []
        for rank in range(world_size):
            end, child_end = Pipe(duplex=False)
            # Rank 0 serves the store on the socket that is already open here, so no other process can take the port.
            fds = (0, 1, 2, file.fileno(), child_end.fileno(), *([listener.fileno()] if rank == 0 else []))
            argv = ["-m", __name__, str(rank)]
            process = ask(servers[rank % SERVERS], argv, fds, dict(os.environ), os.getcwd())
            ranks.callback(_end, process)
            child_end.close()
            ends.append(end)
        listener.close()
        return _collect(ends, time.monotonic() + timeout)


def _end(process: Forked) -> None:
    process.kill()
    process.join()


def _collect(ends: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: list[RankError] = []
    waiting = dict(zip(ends, range(len(ends)), strict=True))
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = sorted(waiting.values())
            failures.append(RankError(missing[0], "timeout", f"no answer in time from ranks {missing}"))
            break
        for end in ready:
            rank = waiting.pop(end)
            try:
                failure, results[rank] = pickle.loads(end.recv_bytes())
            except EOFError:
                failure = ("died", "the process ended without an answer")
            if failure is not None:
                failures.append(RankError(rank, *failure))
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    if failures:
        # A death is the cause; errors that it causes in other ranks may arrive before it.
        raise next((failure for failure in failures if failure.kind == "died"), failures[0])
    return [results[rank] for rank in range(len(ends))]


def _child(rank: int) -> None:
    """Runs in a rank's process. File descriptors: 3 has its work, 4 takes its answer, 5 is the store's on rank 0."""
    import torch
    import torch.distributed as dist

    end, timeout = Connection(4, readable=False), 0.0
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    try:
        # Not `read`: all ranks share one file, and its position.
        port, world_size, timeout, fn, args = pickle.loads(os.pread(3, os.fstat(3).st_size, 0))
        limit = timedelta(seconds=timeout)
        fd = {"master_listen_fd": 5} if rank == 0 else {}
        store = dist.TCPStore(
            "127.0.0.1", port, world_size, is_master=rank == 0, timeout=limit, wait_for_workers=False, **fd
        )
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("test", store), rank=rank, world_size=world_size, timeout=limit
        )
        answer = pickle.dumps((None, fn(rank, world_size, *args)))
    except BaseException as error:
        answer = pickle.dumps(((type(error).__name__, traceback.format_exc()), None))
    end.send_bytes(answer)
    # Rank 0 holds the store: it stays until the parent, having all answers, kills it.
    if rank == 0:
        time.sleep(timeout)


if __name__ == "__main__":
    _child(int(sys.argv[1]))
