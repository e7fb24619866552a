"""How the ranks of one gang find each other: a TCP store on a port that rank 0's operating system picks.

No fixed port and no guess at a free one, so any number of gangs can share a node. A gang never leaves its node
(STRICT_PACK), so everything listens on the loopback interface only: no other host can join or disturb it.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ["join_group", "open_store"]

_LOOPBACK = "127.0.0.1"


def open_store(world_size: int) -> dist.TCPStore:
    """Rank 0's store; its ``port`` is the actual one."""
    # By default a TCPStore listens on all interfaces; given a socket that already listens, it uses that.
    listener = socket.create_server((_LOOPBACK, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        _LOOPBACK, port, world_size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def join_group(
    *, device: torch.device, port: int, store: dist.TCPStore | None, rank: int, world_size: int, timeout_s: float
) -> None:
    """Join the default process group of this gang: NCCL for a CUDA device, else gloo.

    Args:
        device: this rank's.
        port: the store's.
        store: rank 0's own; None on the others.
        timeout_s: also applies to every later collective.
    """
    timeout = timedelta(seconds=timeout_s)
    store = store or dist.TCPStore(_LOOPBACK, port, world_size, is_master=False, timeout=timeout)
    # Without this gloo listens where the host name resolves to, which may be an interface that disappears.
    loopback = (name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", next(loopback, "lo"))
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("gang", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if cuda else None,
    )
