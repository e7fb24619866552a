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
    """``jobs/ID/job.json`` with the files of its result beside it; ``tmp`` for what is being written, ``trash``.

    Everything in it blocks: call it from a thread. A file system whose renames are atomic is all that it needs, so a
    shared folder (NFS, a volume) will do; an object store mounted as a folder has no such renames.

    Args:
        path: whole; made if it is not there, but not its parents.

    Raises:
        OSError: it can neither be made nor written.
        ValueError: it is relative, or its parent is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = whole_path(path)
        self._jobs, self._tmp, self._trash = (self.path / name for name in FOLDERS)
        for folder in (self._jobs, self._tmp, self._trash):
            # Prompts and results are for those who ask with the right key, not for all users of the machine.
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> bool:
        """Make this folder ours alone, if no other living store has it: two would run every job twice.

        A file system that knows no locks lets everybody in.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            logger.warning("%s cannot be locked (%s): run one service on it only", self.path, error.strerror)
        return True

    def release(self) -> None:
        """Let another store in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> list[StoredJob]:
        """All jobs that are whole. What a process that died left half done is thrown away."""
        for folder in (self._tmp, self._trash):
            for leftover in folder.iterdir():
                shutil.rmtree(leftover, ignore_errors=True)
        found = []
        for folder in sorted(self._jobs.iterdir()):
            if not is_job_id(folder.name):
                logger.warning("%s is no job of this store; left alone", folder)
                continue
            try:
                job = StoredJob.model_validate_json((folder / _RECORD).read_bytes())
            except FileNotFoundError:
                self.remove(folder.name)  # its process died between making the folder and writing the record
                continue
            except (OSError, ValidationError) as error:
                # Not its words: they hold the request.
                logger.error("%s cannot be read, and is left alone: %s", folder / _RECORD, type(error).__name__)
                continue
            if job.id == folder.name:
                found.append(job)
        return found

    def add(self, job: StoredJob, files: Mapping[str, bytes] | None = None) -> None:
        """Keep a new job, with ``files`` beside its record.

        Raises:
            OSError: no room, or no such right; nothing is left of it.
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
        """Keep ``job`` as it is now.

        Raises:
            OSError: no room, or it was removed; what was kept of it before still is.
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
        """A folder on the same file system, gone afterwards."""
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
        """Forget a job and its files; nothing if it is not there. At once for whoever looks, however large they are."""
        try:
            (self._jobs / id).rename(self._trash / id)  # makes nothing new: there may be no room for it
        except FileNotFoundError:
            return
        shutil.rmtree(self._trash / id, ignore_errors=True)
        _sync(self._jobs)

    def path_of(self, id: str, name: str) -> Path:
        """Where a file of a job lies."""
        return self._jobs / id / name

    def read(self, id: str, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on, fewer at its end.

        Raises:
            OSError: it is gone.
        """
        with (self._jobs / id / name).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _sync(folder: Path) -> None:
    """A rename is on disk once the folder's own entry is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
