"""The examples of docs/python.md, and those of docs/start.md, run as they stand against a real application."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.snippets import snippets


def test_every_example_runs(flux: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = snippets("docs/python.md", "python")
    assert len(examples) > 5
    for example in examples:
        example.run(names)
    assert (tmp_path / "circle.png").stat().st_size > 100


def test_the_examples_of_the_first_minutes_run(flux: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    asking = snippets("docs/start.md", "python")
    assert len(asking) == 2
    for example in asking:
        names: dict[str, object] = {}
        # The service of this test has fewer blocks than DBCache's defaults compute.
        code = example.code.replace("http://127.0.0.1:8000", flux).replace('"DBCache"', '"FBCache"')
        replace(example, code=code).run(names)
        assert "reply" not in names or len(names["reply"].data[0].b64_json) > 100
    assert (tmp_path / "image.png").stat().st_size > 100
