"""Stands where Ray would start Python for a worker: has a server fork it, and waits until it ends.

    python -S fork_worker.py SOCKET... -- SCRIPT ARGUMENTS

Run as a file, without site packages: it takes 20 ms. Where no server answers any more, it becomes the worker itself.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(sockets: list[str], argv: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.helpers.forking import ask

    try:
        worker = ask(sockets[os.getpid() % len(sockets)], argv, (0, 1, 2), dict(os.environ), os.getcwd())
    except OSError:
        os.execv(sys.executable, [sys.executable, *argv])
    signal.signal(signal.SIGTERM, lambda *_: worker.kill())  # to whom Ray sends it until the worker has told its own id
    worker.join()


if __name__ == "__main__":
    cut = sys.argv.index("--")
    main(sys.argv[1:cut], sys.argv[cut + 1 :])
