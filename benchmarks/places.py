"""Where benchmarks put what they make: a folder that git ignores; ``docs/`` only for those who say ``--doc``."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

__all__ = ["DOCS", "OUT", "doc_option", "place", "put_text"]

DOCS, OUT = Path("docs"), Path("benchmarks/out")


def doc_option() -> bool:
    """``--doc`` of a command, which is off unless it is given."""
    option: bool = typer.Option(False, "--doc", help=f"write into {DOCS}/, over what is there, instead of {OUT}/")
    return option


def place(name: str, doc: bool) -> Path:
    """Where the file ``name`` goes, such as ``images/quality.png``; its folder is made, and the place is printed."""
    path = (DOCS if doc else OUT) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Console(stderr=True).print(f"into {path}" if doc else f"into {path} ({DOCS / name} with --doc)", highlight=False)
    return path


def put_text(name: str, mark: str, text: str, doc: bool) -> None:
    """``text`` between the two ``mark``s of the page ``name``; without ``doc`` as a file of its own.

    Raises:
        ValueError: the page does not have the mark exactly twice.
    """
    path = place(name, doc)
    if not doc:
        path.write_text(f"{text}\n")
        return
    page = path.read_text()
    if (found := page.count(mark)) != 2:
        raise ValueError(f"{path} must say {mark} before and behind the table; found {found} times")
    before, _, after = page.split(mark)
    path.write_text(f"{before}{mark}\n\n{text}\n{mark}{after}")
