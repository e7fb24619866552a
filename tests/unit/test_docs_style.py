"""How the sources of the documents are written: lines of at most 120 characters, as in the code."""

from __future__ import annotations

import re

import pytest

from tests.helpers.snippets import ROOT

WIDTH = 120
#: Pages that keep to it. One that is rewritten joins them.
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md"),
    *(f"docs/{name}.md" for name in ("start", "requests", "cluster", "loadtests")),
]


def too_long(text: str) -> list[int]:
    """Numbers of the lines that are too long, without what cannot be broken: code, tables, addresses of links."""
    text = re.sub(r"^```.*?^```", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\]\([^)]*\)|<?https?://\S+", "]", line) for line in text.splitlines()]
    return [number for number, line in enumerate(lines, 1) if len(line) > WIDTH and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_wrapped(page: str):
    assert too_long((ROOT / page).read_text()) == []


def test_what_is_too_long():
    word = "x" * WIDTH
    assert too_long(f"{word}\n{word}x\n") == [2]
    assert too_long(f"| {word} |\n\n```bash\n{word}x\n```\n[text](https://{word}) more\n{word}x") == [7]
