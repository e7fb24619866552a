"""Every code block of the documents is run or checked by a test, or has its reason here why not."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.snippets import snippets


@pytest.fixture(autouse=True)
def _one_thread():
    """More than one is ten times slower where tests share the cores."""
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "raycache/demo/flux_tiny/README.md"], ids=["readme", "card"])
def test_the_example_without_a_service_runs(page: str, capsys: pytest.CaptureFixture[str]):
    (example,) = snippets(page, "python")
    names: dict[str, object] = {}
    example.run(names)
    assert names["image"].size == (128, 128)
    assert len(set(names["image"].getdata())) > 100  # an image, not a blank
