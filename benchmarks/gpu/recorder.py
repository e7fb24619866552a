"""What one section found, on disk as soon as it is known. Imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Cell", "Found", "Recorder"]

Cell = str | int | float | None


@dataclass
class Found:
    """Of one section so far.

    Attributes:
        tables: rows by title of their table; a row has a value for each column.
        skipped: what was not measured, and why: it does not fit, or is not installed.
        failed: what should have worked, and the error.
        notes: sentences on the figures.
    """

    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """In all tables."""
        return sum(len(rows) for rows in self.tables.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Found:
        """From a file; nothing found where there is none."""
        if not path.exists():
            return cls()
        values = json.loads(path.read_text())
        for name in ("skipped", "failed"):
            values[name] = [(what, why) for what, why in values[name]]
        return cls(**values)


class Recorder:
    """Writes a :class:`Found`. Any process of the section may, one at a time: each change reads the file anew."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, table: str, **row: Cell) -> None:
        """One row more."""
        found = Found.read(self.path)
        found.tables.setdefault(table, []).append(row)
        self._write(found)

    def skip(self, what: str, why: str) -> None:
        """It was not measured, and that is right so."""
        found = Found.read(self.path)
        found.skipped.append((what, why))
        self._write(found)

    def fail(self, what: str, why: str) -> None:
        """It was not measured, and should have been."""
        found = Found.read(self.path)
        found.failed.append((what, why))
        self._write(found)

    def note(self, text: str) -> None:
        """A sentence on the figures."""
        found = Found.read(self.path)
        found.notes.append(text)
        self._write(found)

    def _write(self, found: Found) -> None:
        # A process that is killed while it writes must not take with it what was there.
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(found.to_dict(), indent=1))
        os.replace(beside, self.path)
