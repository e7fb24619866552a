"""How benchmarks report results: tables on the screen and in Markdown, medians with their spread, the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import table as rich_table
from rich.console import Console

__all__ = ["Table", "machine", "processor", "quantile", "quartiles", "show_table", "spread", "write"]


@dataclass(frozen=True)
class Table:
    """One table with formatted cells. The title may be empty."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self) -> None:
        """Print it, as wide as it needs to be if the output is not a terminal."""
        table = rich_table.Table(*self.columns, title=self.title or None)
        for row in self.rows:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(table)

    def markdown(self) -> str:
        """The title in bold, and the table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        title = f"**{self.title}**\n\n" if self.title else ""
        return title + "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: Path | None) -> None:
    """Print a table and, if ``out`` is given, write it there as Markdown."""
    table = Table(title, columns, rows)
    table.show()
    write(out, table)


def write(out: Path | None, *tables: Table, about: str = "") -> None:
    """Write the tables to a Markdown file at ``out``, below the paragraph ``about``; do nothing if ``out`` is None."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*([f"{about}\n"] if about else []), *(table.markdown() for table in tables)]))


def quartiles(values: Sequence[float], digits: int = 2) -> str:
    """The median and the quartiles of two values or more, with ``digits`` decimals."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} - {high:.{digits}f})"


def spread(values: Sequence[float]) -> str:
    """The median and, for several values, the least and the most, in three digits; a dash if there is no value."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} - {max(values):.3g})"


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that is not below ``part`` of all values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def machine() -> str:
    """What a figure depends on apart from the code."""
    load = os.getloadavg()[0]
    busy = ", shared with other work" if load > 1 else ""
    return f"{os.cpu_count()} CPU cores, no GPU, load average {load:.1f} at the end{busy}, {time.strftime('%Y-%m-%d')}"


def processor() -> str:
    """The model of this machine's processor."""
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
