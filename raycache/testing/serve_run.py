"""`serve run` as a child process, started and stopped as by a user."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def serve_run(config: Path, log: Path | None = None, stop_s: float = 60.0) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run` on ``config`` while the block runs.

    Args:
        config: a ``serve run`` YAML.
        log: file for its output; None drops it.
        stop_s: seconds it has to stop after SIGINT, before its process group is killed.

    Yields:
        The process; when waiting for its service, ``poll()`` it, because it may end by itself.
    """
    serve = Path(sys.executable).with_name("serve")
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            [str(serve), "run", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell may make background jobs ignore SIGINT, which stops `serve run`.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(stop_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
