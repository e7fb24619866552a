"""Output of commands: results on standard output, everything else on standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

__all__ = ["USAGE", "fail", "told"]

#: Exit code for errors that the user can fix by other arguments; later failures exit with 1.
USAGE = 2


def told() -> Console:
    """The current standard error, for progress, warnings and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def fail(reason: str, code: int = USAGE) -> NoReturn:
    """Print the reason, and exit with ``code``."""
    console = told()
    console.print("Error: ", style="bold red", end="")
    console.print(reason, markup=False)
    raise typer.Exit(code)
