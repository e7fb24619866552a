"""How the ranks of one gang find each other: a TCP store on a port that rank 0's system chooses.

No fixed port and no guess at a free one, so any number of gangs share a node.
"""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

__all__ = ["join_group", "open_store"]


def open_store(address: str, world_size: int) -> dist.TCPStore:
    """Rank 0's store; its ``port`` is the real one."""
    return dist.TCPStore(address, 0, world_size, is_master=True, wait_for_workers=False)


def join_group(
    *, backend: str, address: str, port: int, store: dist.TCPStore | None, rank: int, world_size: int, timeout_s: float
) -> None:
    """Join the default process group of this gang.

    Args:
        backend: ``gloo`` or ``nccl``.
        store: rank 0 passes its own, the others None.
        timeout_s: of every later collective, too.
    """
    timeout = timedelta(seconds=timeout_s)
    store = store or dist.TCPStore(address, port, world_size, is_master=False, timeout=timeout)
    dist.init_process_group(
        backend, store=dist.PrefixStore("gang", store), rank=rank, world_size=world_size, timeout=timeout
    )
