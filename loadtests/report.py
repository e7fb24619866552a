"""One self-contained HTML page for a run, with plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from loadtests.plots import figures
from loadtests.records import Record

__all__ = ["write_report"]

_PAGE = Path(__file__).with_name("report.html.j2")

_ROWS = (
    ("latency, from the intended start", "latency"),
    ("in the server's queue", "queue"),
    ("first event of a stream", "first_event"),
    ("first preview of a stream", "first_preview"),
    ("delay of this client", "late_client"),
)


def write_report(path: Path, name: str, about: str, results: dict[str, Any], records: Sequence[Record]) -> None:
    """Write the page for ``results``: those of ``summarize``, with additional keys.

    These may be ``faults``, ``agreement``, ``kinds``, ``steps`` with ``highest_held``, and ``service``.
    """
    page = Environment(autoescape=select_autoescape(default=True)).from_string(_PAGE.read_text())
    path.write_text(page.render(name=name, about=about, results=results, rows=_ROWS, figures=figures(records, results)))
