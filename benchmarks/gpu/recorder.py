"""One section's results, on disk as soon as they are known. Does not import torch."""

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
    """Results of one section so far.

    Attributes:
        tables: rows by title of their table; a row has a value for each column.
        skipped: what was not measured, and why: it does not fit, or is not installed.
        failed: what should have worked, and the error.
        notes: sentences about the figures.
    """

    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows in all tables."""
        return sum(len(rows) for rows in self.tables.values())

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, path: Path) -> Found:
        """Read from a file; empty results if there is none."""
        if not path.exists():
            return cls()
        values = json.loads(path.read_text())
        for name in ("skipped", "failed"):
            values[name] = [(what, why) for what, why in values[name]]
        return cls(**values)


class Recorder:
    """Writes a :class:`Found`. Any process of the section may write, one at a time: each change rereads the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, table: str, **row: Cell) -> None:
        """Add a row."""
        found = Found.read(self.path)
        found.tables.setdefault(table, []).append(row)
        self._write(found)

    def skip(self, what: str, why: str) -> None:
        """Record what was deliberately not measured."""
        found = Found.read(self.path)
        found.skipped.append((what, why))
        self._write(found)

    def fail(self, what: str, why: str) -> None:
        """Record what should have been measured and was not."""
        found = Found.read(self.path)
        found.failed.append((what, why))
        self._write(found)

    def note(self, text: str) -> None:
        """Add a sentence about the figures."""
        found = Found.read(self.path)
        found.notes.append(text)
        self._write(found)

    def _write(self, found: Found) -> None:
        # A process that is killed while writing must not destroy earlier results.
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(found.to_dict(), indent=1))
        os.replace(beside, self.path)
