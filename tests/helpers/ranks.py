"""Runs a function on N gloo ranks, each a process of its own, and collects what they return or raise."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

__all__ = ["RankError", "run_ranks"]

_ROOT = str(Path(__file__).resolve().parents[2])
#: Seconds the other ranks get to answer after the first one failed: those blocked in a collective never will.
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
        timeout: seconds for everything, start of the processes included; also the timeout of a collective.

    Returns:
        What each rank returned, in order of ranks.

    Raises:
        RankError: from the first rank that died, else from the first that failed. No process is left behind.
    """
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as listener, _importable():
        port, ends, processes = listener.getsockname()[1], [], []
        for rank in range(world_size):
            end, child_end = context.Pipe(duplex=False)
            # Rank 0 serves the store on the very socket that is open here, so no other process can take the port.
            handle = listener if rank == 0 else None
            job = (child_end, handle, port, rank, world_size, timeout, fn, args)
            processes.append(context.Process(target=_child, args=job, daemon=True))
            processes[-1].start()
            child_end.close()
            ends.append(end)
    try:
        return _collect(ends, time.monotonic() + timeout)
    finally:
        for process in processes:
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
        # A death is a cause; what the others raise because of it may arrive before it.
        raise next((failure for failure in failures if failure.kind == "died"), failures[0])
    return [results[rank] for rank in range(len(ends))]


def _child(
    end: Connection,
    listener: socket.socket | None,
    port: int,
    rank: int,
    world_size: int,
    timeout: float,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    limit = timedelta(seconds=timeout)
    try:
        fd = {} if listener is None else {"master_listen_fd": listener.detach()}
        store = dist.TCPStore(
            "127.0.0.1", port, world_size, is_master=rank == 0, timeout=limit, wait_for_workers=False, **fd
        )
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("test", store), rank=rank, world_size=world_size, timeout=limit
        )
        answer = pickle.dumps((None, fn(rank, world_size, *args)))
    except BaseException as error:
        answer = pickle.dumps(((type(error).__name__, traceback.format_exc()), None))
    # Plain pickle: `end.send` would share tensors as files of a process that is about to end.
    end.send_bytes(answer)
    # Rank 0 holds the store: it stays until the parent, which has all answers by then, kills it.
    if rank == 0:
        time.sleep(timeout)


@contextlib.contextmanager
def _importable() -> Any:
    """Children inherit ``sys.path``: with the repository in it they find the test modules by their names."""
    sys.path.insert(0, _ROOT)
    try:
        yield
    finally:
        sys.path.remove(_ROOT)
