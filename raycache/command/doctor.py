"""``raycache doctor``: checks of this machine, one line each, with advice."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "fails": "bold red"}


def doctor(
    port: Annotated[int, typer.Option(help="Port that the service will use.", min=1, max=65535)] = 8000,
) -> None:
    """Check this machine for what serving needs. The exit code is 1 if something would fail."""
    from raycache.command.checks import all_checks

    console = Console(soft_wrap=True, highlight=False)
    worst = 0
    for check in all_checks(port):
        console.print(f"{check.state:8}", style=_STYLES[check.state], end="")
        console.print(f" {check.name:12} {check.told}", markup=False)
        worst = max(worst, int(check.state == "fails"))
    raise typer.Exit(worst)
