"""The Python examples of the README and the bundled model's card that need no service, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "raycache" / "demo" / "flux_tiny" / "README.md"]


def examples(page: Path) -> list[tuple[int, str]]:
    """Line number and text of each Python example of a page."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


@pytest.fixture(autouse=True)
def _one_thread():
    """More than one is ten times slower where tests share the cores."""
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=["readme", "card"])
def test_every_example_without_a_service_runs(page: Path, capsys: pytest.CaptureFixture[str]):
    alone = [(line, code) for line, code in examples(page) if "serve" not in code and "OpenAI" not in code]
    assert len(alone) == 1
    for line, code in alone:
        names: dict[str, object] = {}
        exec(compile("\n" * line + code, str(page), "exec"), names)  # a failure names the page's own line
        assert names["image"].size == (128, 128)
        assert len(set(names["image"].getdata())) > 100  # an image, not a blank


def test_no_example_is_left_out():
    """The others of the README talk to a service: tests/serving/test_docs.py runs those."""
    others = [code for _, code in examples(PAGES[0]) if "serve" in code or "OpenAI" in code]
    assert len(others) == 2
    assert len(examples(PAGES[0])) == 3
