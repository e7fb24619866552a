"""Benchmarks leave ``docs/`` alone unless somebody says ``--doc``."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest
import typer

from benchmarks.places import DOCS, OUT, place, put_text

ROOT = Path(__file__).parents[3]
COMMANDS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "typer.run(main)" in path.read_text()
}
WRITERS = {name for name, text in COMMANDS.items() if re.search(r"\b(?:place|put_text)\(", text)}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_of_a_benchmark_leads_into_docs_by_itself(name: str):
    command = typer.main.get_command(_app(name))
    options = {parameter.name: parameter for parameter in command.params}
    into_docs = [one for one, option in options.items() if "docs" in Path(str(option.default)).parts]
    assert not into_docs, "such defaults are overwritten by whoever looks what the benchmark does"
    if name in WRITERS:
        assert options["doc"].opts == ["--doc"]
        assert options["doc"].default is False
    else:
        assert "doc" not in options, "an option that does nothing"


def _app(name: str) -> typer.Typer:
    app = typer.Typer()
    app.command()(importlib.import_module(name).main)
    return app


def test_only_one_file_knows_the_way_into_docs():
    """Whatever else a benchmark wrote there, no option would guard it."""
    literal = re.compile(r"""Path\(f?["']docs|(?:open|write_text|savefig|save)\([^)\n]*["']docs/""")
    ways = {
        str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks").rglob("*.py") if literal.search(path.read_text())
    }
    assert ways == {"benchmarks/places.py"}


def test_all_that_drew_into_docs_asks_first():
    assert {name.removeprefix("benchmarks.") for name in WRITERS} == {
        "block_shares", "capacity", "decisions", "gpu.__main__", "many_jobs", "matched", "playground_screenshot",
        "quality", "quality_grid", "waits",
    }  # fmt: skip


def test_bench_targets_write_no_documents():
    assert "--doc" not in (ROOT / "Makefile").read_text()


def test_git_ignores_what_benchmarks_make():
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{OUT}/images/x.png"], cwd=ROOT)
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    assert ignored.returncode == 0


@pytest.mark.parametrize("doc", [False, True])
def test_a_place_is_made_and_told(doc: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = place("images/x.png", doc)
    assert path == (DOCS if doc else OUT) / "images/x.png"
    assert path.parent.is_dir()
    assert str(path) in capsys.readouterr().err


def test_text_goes_between_marks_of_a_page_only_if_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = Path("docs/page.md")
    page.parent.mkdir()
    page.write_text("before\n<!-- t -->\nold\n<!-- t -->\nafter\n")
    put_text("page.md", "<!-- t -->", "new", doc=False)
    assert "old" in page.read_text()
    assert (OUT / "page.md").read_text() == "new\n"
    put_text("page.md", "<!-- t -->", "new", doc=True)
    assert page.read_text() == "before\n<!-- t -->\n\nnew\n<!-- t -->\nafter\n"
    page.write_text("no mark\n")
    with pytest.raises(ValueError, match="found 0 times"):
        put_text("page.md", "<!-- t -->", "new", doc=True)
    assert page.read_text() == "no mark\n"
