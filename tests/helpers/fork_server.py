"""One of the servers of :mod:`tests.helpers.forking`: imports what ranks import, then forks whenever it is asked.

python -m tests.helpers.fork_server SOCKET
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

#: What takes ranks and Ray's workers long. Not Ray: it reads the environment, which is another in each child. Nothing
#: of this project: a test may ask what of it a rank needs.
PRELOADED = (
    "av",
    "fastapi",
    "uvicorn",
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "diffusers.hooks.context_parallel",
    "diffusers.modular_pipelines.modular_pipeline",
    "diffusers.pipelines.flux.pipeline_flux",
    "para_attn.context_parallel",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
)
_LIMIT, _FDS = 1 << 20, 16


def main(path: str) -> None:
    """Serves until standard input ends; returns in each child, as what it was asked to be."""
    for module in PRELOADED:
        importlib.import_module(module)
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"{threads} threads after the imports: children would lack all but one")
    if "ray" in sys.modules:
        raise RuntimeError("Ray has been imported, with this process's environment in place of the children's")
    gc.collect()
    gc.freeze()  # else collections in children would go over all of this, and copy its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{path}.new")
        listener.listen(64)
        os.rename(f"{path}.new", path)  # whoever finds it may connect
        child = serve(listener)
    if child is not None:
        run(*child)


def serve(listener: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """In a child: what it was asked for and its file descriptors. None = it is over."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin.fileno()], [], [])
        if listener not in ready:
            return None
        connection, _ = listener.accept()
        with connection:
            asked, fds, _, _ = socket.recv_fds(connection, _LIMIT, _FDS)
            if not asked:
                continue
            parent_end, child_end = os.pipe()
            if (pid := os.fork()) == 0:
                os.close(child_end)
                os.read(parent_end, 1)  # until the parent holds a handle of this process
                os.close(parent_end)
                return json.loads(asked), fds
            os.close(parent_end)
            handle = os.pidfd_open(pid)
            os.close(child_end)
            try:
                socket.send_fds(connection, [str(pid).encode()], [handle])
            except OSError:  # who asked has been killed meanwhile
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            for fd in (handle, *fds):
                os.close(fd)


def run(asked: dict[str, Any], fds: list[int]) -> None:
    """Be ``python argv...`` with these files, this environment, this folder."""
    os.setpgid(0, 0)  # who ends a process ends its group, too
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = [os.dup2(fd, 200 + place) for place, fd in enumerate(fds)]  # out of each other's way
    os.closerange(0, 200)
    for place, fd in enumerate(high):
        os.dup2(fd, place)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    argv = asked["argv"]
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
