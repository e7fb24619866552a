"""What commands say to people: results on standard output, all else on standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

__all__ = ["USAGE", "fail", "told"]

#: Exit code for whatever the user can put right by asking otherwise; what failed underway ends with 1.
USAGE = 2


def told() -> Console:
    """Standard error, as it is now: progress, warnings and reasons."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def fail(reason: str, code: int = USAGE) -> NoReturn:
    """Say why, and end the command with ``code``."""
    console = told()
    console.print("Error: ", style="bold red", end="")
    console.print(reason, markup=False)
    raise typer.Exit(code)
