"""The examples of docs/python.md, and those of the README that need a service, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
README = Path(__file__).parents[2] / "README.md"


def test_every_example_runs(flux: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    names: dict[str, object] = {}
    examples = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert len(examples) > 5
    for example in examples:
        line = text[: example.start(1)].count("\n")
        exec(compile("\n" * line + example[1], str(PAGE), "exec"), names)  # a failure names the page's own line
    assert (tmp_path / "circle.png").stat().st_size > 100


def test_the_examples_of_the_readme_run(flux: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text()
    examples = [m[1] for m in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    asking = [example for example in examples if "OpenAI" in example or "serve" in example]
    assert len(asking) == 2
    for example in asking:
        names: dict[str, object] = {}
        # The service of this test has fewer blocks than DBCache's defaults compute.
        example = example.replace("http://127.0.0.1:8000", flux).replace('"DBCache"', '"FBCache"')
        exec(compile(example, str(README), "exec"), names)
        assert "reply" not in names or len(names["reply"].data[0].b64_json) > 100
    assert (tmp_path / "picture.png").stat().st_size > 100
