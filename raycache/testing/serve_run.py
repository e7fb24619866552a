"""`serve run` as a child process, as a user starts and stops it."""

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
        log: where its output goes; None drops it.
        stop_s: seconds it has to stop after SIGINT, before its process group is killed.

    Yields:
        The process; whoever waits for its service should ``poll()`` it, as it may end by itself.
    """
    serve = Path(sys.executable).with_name("serve")
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            [str(serve), "run", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell may have told background jobs to ignore SIGINT, which is how `serve run` is stopped.
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
