"""Where benchmarks write their results: a folder that git ignores, or ``docs/`` with ``--doc``."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

__all__ = ["DOCS", "OUT", "doc_option", "place", "put_text"]

DOCS, OUT = Path("docs"), Path("benchmarks/out")


def doc_option() -> bool:
    """A command's ``--doc`` option, off by default."""
    option: bool = typer.Option(False, "--doc", help=f"write into {DOCS}/ instead of {OUT}/; overwrites what is there")
    return option


def place(name: str, doc: bool) -> Path:
    """The path for the file ``name``, such as ``images/quality.png``; creates its folder and prints the path."""
    path = (DOCS if doc else OUT) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Console(stderr=True).print(f"into {path}" if doc else f"into {path} ({DOCS / name} with --doc)", highlight=False)
    return path


def put_text(name: str, mark: str, text: str, doc: bool) -> None:
    """Write ``text`` between the two ``mark``s of the page ``name``; without ``doc``, into a separate file.

    Raises:
        ValueError: the mark does not appear exactly twice in the page.
    """
    path = place(name, doc)
    if not doc:
        path.write_text(f"{text}\n")
        return
    page = path.read_text()
    if (found := page.count(mark)) != 2:
        raise ValueError(f"{path} must have {mark} before and after the table; found {found} times")
    before, _, after = page.split(mark)
    path.write_text(f"{before}{mark}\n\n{text}\n{mark}{after}")
