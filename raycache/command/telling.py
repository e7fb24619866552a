"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["USAGE", "fail", "progress", "told"]

#: Exit code for errors that the user can fix by other arguments; later failures exit with 1.
USAGE = 2


def told() -> Console:
    """The current standard error, for progress, warnings and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def progress() -> Progress:
    """A bar on standard error: what is going on, how much of it is done, and the time so far."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=told())


def fail(reason: str, code: int = USAGE) -> NoReturn:
    """Print the reason, and exit with ``code``."""
    console = told()
    console.print("Error: ", style="bold red", end="")
    console.print(reason, markup=False)
    raise typer.Exit(code)
