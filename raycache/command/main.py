"""The command's entry: subcommands by name, each imported when it runs."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from raycache import __version__
from raycache.command.bench import bench
from raycache.command.config import app as config
from raycache.command.doctor import doctor
from raycache.command.draw import draw
from raycache.command.serve import serve
from raycache.command.telling import fail
from raycache.quiet import be_quiet

__all__ = ["app"]

app = typer.Typer(
    name="raycache",
    help="Images from diffusion transformers: serve them, draw one, check this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is read by people who know Python's
)
#: Tools that have options of their own, by their command; with the extra that brings what they need.
_TOOLS = {"tune": ("raycache.tune.command", "tune"), "quantize": ("raycache.quantize", "quant")}
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(asked: bool) -> None:
    if asked:
        print(f"raycache {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


def run_tool(name: str, arguments: list[str]) -> None:
    """Run one of the tools with ``arguments``, as ``python -m`` would.

    Raises:
        typer.Exit: what the tool needs is not installed.
    """
    module, extra = _TOOLS[name]
    be_quiet()
    try:
        tool = import_module(module)
    except ModuleNotFoundError as error:
        fail(f"`raycache {name}` needs {error.name}: pip install 'raycache[{extra}]'")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command()(tool.main)
    alone(args=arguments, prog_name=f"raycache {name}")


app.command()(serve)
app.command()(draw)
app.command()(bench)
app.command()(doctor)
app.add_typer(config, name="config")


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def tune(context: typer.Context) -> None:
    """Measure cache settings on a model, and write presets; `raycache tune --help` has the options."""
    run_tool("tune", context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def quantize(context: typer.Context) -> None:
    """Write a quantized copy of a model; `raycache quantize --help` has the options."""
    run_tool("quantize", context.args)
