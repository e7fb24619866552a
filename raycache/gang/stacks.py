"""Files for the Python stacks of ranks, which disappear with the engine, even if it is killed.

They have no name: a file in the temporary folder would outlive an engine that is killed. A rank opens its file through
the engine's process, which runs on the same node as the same user.
"""

from __future__ import annotations

import os
import tempfile
from typing import IO

__all__ = ["StacksFile"]


class StacksFile:
    """A file that one rank writes and the engine reads.

    Attributes:
        path: for the rank to open and write; valid on this node while this object lives.
    """

    def __init__(self) -> None:
        if os.path.isdir("/proc/self/fd"):
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the engine
            self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:  # not Linux: a killed engine leaves the file behind
            self._file = tempfile.NamedTemporaryFile(prefix="raycache-stacks-")  # noqa: SIM115
            self.path = self._file.name

    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def read(self) -> str:
        """The text written so far."""
        self._file.seek(0)
        return self._file.read().decode(errors="replace").strip()

    def close(self) -> None:
        """Free the file."""
        self._file.close()
