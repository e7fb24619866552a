"""Tables and figures that benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.report import Table, machine, processor, quantile, quartiles, show_table, spread, write

TABLE = Table("What it took", ["what", "s"], [("a | b", "1.5"), ("c", "2")])
MARKDOWN = "**What it took**\n\n| what | s |\n| --- | --- |\n| a \\| b | 1.5 |\n| c | 2 |\n"


def test_a_table_in_markdown():
    """A bar in a cell is no new cell."""
    assert TABLE.markdown() == MARKDOWN
    assert Table("", ["x"], []).markdown() == "| x |\n| --- |\n"


def test_what_is_shown_is_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "table.md"
    show_table(TABLE.title, TABLE.columns, TABLE.rows, out)
    assert out.read_text() == MARKDOWN
    shown = capsys.readouterr().out
    assert all(cell in shown for cell in ("What it took", "what", "a | b", "1.5"))
    show_table(TABLE.title, TABLE.columns, TABLE.rows, None)


def test_several_tables_go_into_one_file(tmp_path: Path):
    out = tmp_path / "tables.md"
    write(out, TABLE, TABLE, about="Two rounds.")
    assert out.read_text() == f"Two rounds.\n\n{MARKDOWN}\n{MARKDOWN}"


def test_figures_with_their_spread():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == "4.00 (2.00 - 6.00)"
    assert quartiles([1.0, 2.0, 3.0], 0) == "2 (1 - 3)"
    assert [spread([]), spread([1 / 3]), spread([3.0, 1.0, 2.0])] == ["-", "0.333", "2 (1 - 3)"]
    assert [quantile([3.0, 1.0, 2.0], part) for part in (0.0, 0.5, 0.95, 1.0)] == [1.0, 2.0, 3.0, 3.0]


def test_the_machine_is_told():
    assert "CPU cores" in machine()
    assert processor()
