"""``raycache config``: the installed configurations."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raycache.command.configs import UnknownConfig, config_names, config_title, find_config
from raycache.command.telling import fail

__all__ = ["app"]

app = typer.Typer(help="Configurations that come with the package.", no_args_is_help=True)


@app.command("list")
def list_them() -> None:
    """The names that `raycache serve` knows, and what each is for."""
    table = Table("name", "what it is", box=None)
    for name in config_names():
        table.add_row(name, config_title(find_config(name)))
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name of `raycache config list`, or a file.")]) -> None:
    """Print a configuration, to change a copy of it: `raycache config show flux > mine.yaml`."""
    try:
        print(find_config(name).read_text(), end="")
    except UnknownConfig as error:
        fail(str(error))
