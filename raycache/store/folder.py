"""The folder behind the store: one folder per job, with atomic changes."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from raycache.protocol.stored import StoredJob, is_job_id
from raycache.store.folder_check import FOLDERS, whole_path

__all__ = ["JobFolder"]

logger = logging.getLogger("ray.serve")

_RECORD = "job.json"


class JobFolder:
    """``jobs/ID/job.json`` with the files of its result next to it; ``tmp`` for files being written; ``trash``.

    All methods block: call them from a thread. They need a file system with atomic renames, so a shared folder (NFS, a
    volume) works; an object store mounted as a folder has no atomic renames.

    Args:
        path: absolute; created if missing, but not its parents.

    Raises:
        OSError: it cannot be created or is not writable.
        ValueError: it is relative, or its parent does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = whole_path(path)
        self._jobs, self._tmp, self._trash = (self.path / name for name in FOLDERS)
        for folder in (self._jobs, self._tmp, self._trash):
            # Prompts and results are for clients with the right key, not for all users of the machine.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Lock this folder, unless another living store has it: two would run every job twice.

        On a file system without locks this always succeeds.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            logger.warning("%s cannot be locked (%s): run one service on it only", self.path, error.strerror)
        return True

    def release(self) -> None:
        """Unlock the folder for another store."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> list[StoredJob]:
        """All complete jobs. Incomplete files that a killed process left are deleted."""
        for folder in (self._tmp, self._trash):
            for leftover in folder.iterdir():
                shutil.rmtree(leftover, ignore_errors=True)
        found = []
        for folder in sorted(self._jobs.iterdir()):
            if not is_job_id(folder.name):
                logger.warning("%s is not a job of this store; ignored", folder)
                continue
            try:
                job = StoredJob.model_validate_json((folder / _RECORD).read_bytes())
            except FileNotFoundError:
                self.remove(folder.name)  # its process died between making the folder and writing the record
                continue
            except (OSError, ValidationError) as error:
                # Not the error's message: it contains the request.
                logger.error("%s cannot be read, and is ignored: %s", folder / _RECORD, type(error).__name__)
                continue
            if job.id == folder.name:
                found.append(job)
        return found

    def add(self, job: StoredJob, files: Mapping[str, bytes] | None = None) -> None:
        """Store a new job, with ``files`` next to its record.

        Raises:
            OSError: no space or no permission; nothing of it is left behind.
        """
        folder = self._jobs / job.id
        folder.mkdir(mode=0o700)
        try:
            for name, data in (files or {}).items():
                with self.scratch() as scratch:
                    (scratch / name).write_bytes(data)
                    self.adopt(job.id, scratch / name)
            self.write(job)
        except OSError:
            self.remove(job.id)
            raise
        _sync(self._jobs)

    def write(self, job: StoredJob) -> None:
        """Store the current state of ``job``.

        Raises:
            OSError: no space left, or the job was removed; the state stored before stays.
        """
        folder = self._jobs / job.id
        with self.scratch() as scratch:
            path = scratch / _RECORD
            with path.open("wb") as file:
                file.write(job.model_dump_json().encode())
                file.flush()
                os.fsync(file.fileno())
            path.replace(folder / _RECORD)
        _sync(folder)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder on the same file system."""
        with tempfile.TemporaryDirectory(dir=self._tmp) as name:
            yield Path(name)

    def adopt(self, id: str, file: Path) -> None:
        """Move ``file``, which must come from :meth:`scratch`, into the job's folder.

        Raises:
            OSError: the job was removed meanwhile.
        """
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(self._jobs / id / file.name)

    def remove(self, id: str) -> None:
        """Delete a job and its files, if it exists. It disappears atomically, whatever its size."""
        try:
            (self._jobs / id).rename(self._trash / id)  # needs no new space: there may be none
        except FileNotFoundError:
            return
        shutil.rmtree(self._trash / id, ignore_errors=True)
        _sync(self._jobs)

    def path_of(self, id: str, name: str) -> Path:
        """The path of a file of a job."""
        return self._jobs / id / name

    def read(self, id: str, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from offset ``start``, fewer at its end.

        Raises:
            OSError: the file is missing.
        """
        with (self._jobs / id / name).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _sync(folder: Path) -> None:
    """Flush a folder: a rename is on disk only after that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
