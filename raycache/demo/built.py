"""Folders of models made by this project: complete or absent, and the same for the same arguments."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["MARKER", "build_once", "make_readable"]

#: The file that says which model a folder contains.
MARKER = "raycache_model.json"


def build_once(folder: Path, record: Mapping[str, object], save: Callable[[Path], object]) -> Path:
    """Have ``save`` write a model into ``folder``, or return immediately if it exists already.

    The folder appears by one rename, so readers never see half a model and concurrent builders do not disturb each
    other: a later builder keeps the first one's folder.

    Args:
        folder: where the model goes; its parent is created.
        record: everything that determines the model, as JSON values; written next to it.
        save: writes the model into the empty folder passed to it.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: if ``folder`` contains something else, or a model of another ``record``.
    """
    if _is_complete(folder, record):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save(scratch)
        (scratch / MARKER).write_text(json.dumps(record, indent=2) + "\n")
        make_readable(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not _is_complete(folder, record):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def make_readable(folder: Path) -> None:
    """Make ``folder`` readable for other users: safetensors writes mode 0600 and ``mkdtemp`` 0700."""
    os.chmod(folder, 0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _is_complete(folder: Path, record: Mapping[str, object]) -> bool:
    """True if ``folder`` is exactly this model, False if it does not exist; else raises FileExistsError."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / MARKER
    found = json.loads(marker.read_text()) if marker.is_file() else None
    if found != record:
        raise FileExistsError(f"{folder} contains {found or 'files of something else'}, wanted {record}; remove it")
    return True
