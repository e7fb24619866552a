"""Checks that a store can keep jobs in a folder: before deploying, and without leaving files behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["FOLDERS", "check_folder", "whole_path"]

#: Subfolders of a store: the jobs, files being written, files being removed.
FOLDERS = ("jobs", "tmp", "trash")


def whole_path(folder: Path) -> Path:
    """``folder`` as an absolute path, with a leading ``~`` expanded.

    Raises:
        ValueError: it is relative, so it would differ between processes, or its parent does not exist.
    """
    try:
        path = folder.expanduser()
    except RuntimeError:
        raise ValueError(f"store.folder: the home in {str(folder)!r} is unknown; give an absolute path") from None
    if not path.is_absolute():
        # Ray starts replicas in working folders that are removed with the session.
        raise ValueError(f"store.folder: {str(folder)!r} is relative; give an absolute path: stores start anywhere")
    if not path.parent.is_dir():
        # Creating the parents of a missing mount would put the store on the node's own disk, and it would be lost.
        message = f"store.folder: {path.parent} does not exist; create or mount it: only {path.name!r} is created"
        raise ValueError(message)
    return path


def check_folder(folder: Path) -> None:
    """Check that jobs can be kept in ``folder`` on this node.

    Raises:
        ValueError: why not, and what to do.
    """
    path = whole_path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"store.folder: {path} is a file; give a folder, or a path that does not exist")
    there = [path, *(path / name for name in FOLDERS)] if path.exists() else [path.parent]
    for place in there:
        if place.exists() and (reason := _unwritable(place)):
            remedy = "let the service's user write there (chown, or a mount that is not read-only), or choose another"
            raise ValueError(f"store.folder: {place} is not writable: {reason}; {remedy}")


def _unwritable(place: Path) -> str | None:
    try:
        with tempfile.TemporaryDirectory(prefix=".look-", dir=place):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__
