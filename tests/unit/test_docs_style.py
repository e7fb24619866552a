"""How the sources of the documents are written: lines of at most 120 characters, as in the code."""

from __future__ import annotations

import re

import pytest

from tests.helpers.snippets import ROOT

WIDTH = 120
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md"),
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))),
]


def too_long(text: str) -> list[int]:
    """Numbers of the lines that are too long, without what cannot be broken: code, tables, addresses of links.

    Nor with what benchmarks write between two equal comments.
    """
    for unbroken in (r"^```.*?^```", r"^(<!-- [\w ]+ -->)$.*?^\1$"):
        text = re.sub(unbroken, lambda span: "\n" * span[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\]\([^)]*\)|<?https?://\S+", "]", line) for line in text.splitlines()]
    return [
        number for number, line in enumerate(lines, 1) if len(line) > WIDTH and not line.startswith(("|", "    ", "!["))
    ]


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_wrapped(page: str):
    assert too_long((ROOT / page).read_text()) == []


def test_what_is_too_long():
    word = "x" * WIDTH
    assert too_long(f"{word}\n{word}x\n") == [2]
    assert too_long(f"| {word} |\n\n```bash\n{word}x\n```\n[text](https://{word}) more\n{word}x") == [7]
    assert too_long(f"<!-- a table -->\n{word}x\n<!-- a table -->\n\n    {word}\n{word}x") == [6]
