"""Numbers in the documents: a section with a table of them names the command or the test behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.helpers.snippets import PAGES, ROOT, check_options

UNIT = r"(?:s|ms|µs|us|seconds|milliseconds|microseconds|dB|%|[KMG]i?B|(?:images )?a minute)"
#: ``12 ms`` in a cell; ``latency, ms`` in the head of a column or as the first cell of a row.
QUANTITY, LABEL = re.compile(rf"\d\s?{UNIT}(?![\w%])"), re.compile(rf"(?<![\w%]){UNIT}(?![\w%])")
#: What measures: not `make serve` or `raycache.testing`, which stand on pages for other reasons.
MEASURES = re.compile(
    r"(?:\.venv/bin/)?python\s+-m\s+(?:benchmarks|loadtests|raycache\.demo|raycache\.tune)\b[^`\n]*(?:\n[^`\n]+)?"
    r"|(?:\.venv/bin/)?raycache tune\b.*|make (?:bench|loadtest|test|check)[\w-]*|tests/[\w./-]+"
)
#: Sections whose tables have such numbers without a measurement, and where the numbers come from.
NOT_MEASURED = {
    ("raycache/demo/flux_tiny/README.md", "# flux_tiny: a FLUX that draws coloured shapes"): "the size of its files",
    ("docs/edits.md", "## Bounds"): "limits from the settings",
    ("docs/models.md", "# Models"): "gigabytes computed from numbers of parameters, as the page says",
    ("docs/operating.md", "## Settings"): "ranges and defaults, generated from the settings",
    ("docs/operating.md", "## Faults, and what users see"): "time limits from the settings",
    ("docs/reliability.md", "## The front: what stands in Serve's proxy"): "limits of raycache/front",
    ("docs/scheduling.md", "## Settings"): "a default",
    ("docs/videos.md", "## The store"): "a time limit",
}


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Heading and text of each section, code blocks included in the text; first what comes before any heading."""
    heading, lines, fenced = "", list[str](), False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and re.match(r"#{1,6} ", line):
            yield heading, "\n".join(lines)
            heading, lines = line, []
        else:
            lines.append(line)
    yield heading, "\n".join(lines)


def has_numbers(section: str) -> bool:
    """Whether a table has numbers with a unit: in the cell, in the head of its column, or in the label of its row."""
    for table in re.findall(r"(?:^\|.*\n?)+", section, flags=re.MULTILINE):
        head, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for row in rows:
            labelled = any(LABEL.search(cell) for cell in (row[0], *head[1:]))
            if any(QUANTITY.search(cell) or (labelled and re.match(r"\d", cell)) for cell in row[1:]):
                return True
    return False


def measured_by(section: str) -> list[str]:
    """The commands and test paths in backticks or code blocks of a section."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^ {4}(.*)$", section, flags=re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", section, flags=re.MULTILINE | re.DOTALL))
    lines = [*(line for block in blocks for line in block.splitlines()), *(re.sub(r"\s+", " ", one) for one in spans)]
    return [line for line in lines if MEASURES.match(line)]


NUMBERS = [
    (page, heading, text)
    for page in PAGES
    for heading, text in sections((ROOT / page).read_text())
    if has_numbers(text)
]


@pytest.mark.parametrize(("page", "heading", "text"), NUMBERS, ids=[f"{page}: {head}" for page, head, _ in NUMBERS])
def test_a_table_of_numbers_names_what_makes_them(page: str, heading: str, text: str):
    if (page, heading) in NOT_MEASURED:
        return
    found = measured_by(text)
    assert found, f"{page}, {heading}: which command or test makes these numbers? If none, say so in NOT_MEASURED"
    for one in found:
        program, *words = one.split()
        if program.startswith("tests/"):
            assert (ROOT / program.partition("::")[0]).exists(), one
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), one
        elif words[:1] == ["tune"]:
            check_options("raycache.tune", words[1:])
        else:
            check_options(words[1], words[2:])


def test_no_exception_is_stale():
    assert NOT_MEASURED.keys() <= {(page, heading) for page, heading, _ in NUMBERS}


def test_what_counts_as_numbers_and_as_their_source():
    table = "| what | {} |\n| --- | --- |\n| {} | {} |\n"
    assert has_numbers(table.format("seconds", "a", "1.5 (1.2 - 1.8)"))
    assert has_numbers(table.format("value", "latency p50, s", "8.9"))
    assert has_numbers(table.format("value", "memory", "**12 GiB**"))
    assert not has_numbers(table.format("default", "max_rows", "8"))
    assert not has_numbers("It takes 12 ms.\n")
    assert measured_by("`python -m\nbenchmarks.waits --ranks 2` and `make serve`") == [
        "python -m benchmarks.waits --ranks 2"
    ]
    assert measured_by("x\n\n    make bench\n\n```bash\nmake test\n```\n`tests/unit`") == [
        *("make test", "make bench", "tests/unit"),
    ]
    assert [head for head, _ in sections("a\n# b\n```bash\n# c\n```\n## d\n")] == ["", "# b", "## d"]
