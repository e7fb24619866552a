"""Checks that a store can keep jobs in a folder: before anything is deployed, and without leaving files behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["FOLDERS", "check_folder", "whole_path"]

#: What a store has in its folder: the jobs, what is being written, what is being removed.
FOLDERS = ("jobs", "tmp", "trash")


def whole_path(folder: Path) -> Path:
    """``folder`` with the home that it may begin with.

    Raises:
        ValueError: it is no whole path, so each process would have another, or its parent is not there.
    """
    try:
        path = folder.expanduser()
    except RuntimeError:
        raise ValueError(f"store.folder: the home of {str(folder)!r} is not known here; write the whole path") from None
    if not path.is_absolute():
        # Ray starts replicas in folders of their own, which are removed with the session.
        raise ValueError(f"store.folder: {str(folder)!r} is relative, and a store may start anywhere; write all of it")
    if not path.parent.is_dir():
        # A mount that is missing would be made on the node's own disk, with all its parents, and lost with it.
        message = f"store.folder: {path.parent} is not there; make it, or mount it: {path.name!r} alone is made"
        raise ValueError(message)
    return path


def check_folder(folder: Path) -> None:
    """Whether jobs could be kept in ``folder`` on this node.

    Raises:
        ValueError: why not, and what to do.
    """
    path = whole_path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"store.folder: {path} is a file; name a folder, or a path that is free")
    there = [path, *(path / name for name in FOLDERS)] if path.exists() else [path.parent]
    for place in there:
        if place.exists() and (reason := _unwritable(place)):
            remedy = "let the service's user write there (chown, or a mount that is not read-only), or name another"
            raise ValueError(f"store.folder: {place} cannot be written: {reason}; {remedy}")


def _unwritable(place: Path) -> str | None:
    try:
        with tempfile.TemporaryDirectory(prefix=".look-", dir=place):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__
