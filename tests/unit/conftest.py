"""A thread for each process, one folder of tiny models for all of a run, and gradients as each test finds them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a run, and processes that tests start, inherit what is set here."""
    # As many workers as cores run at once: more threads each would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "TINY_MODELS" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="tiny-models-")
        config.add_cleanup(folder.cleanup)
        os.environ["TINY_MODELS"] = folder.name


@pytest.fixture(autouse=True)
def gradients_as_before() -> Iterator[None]:
    """A rank turns them off in the thread that drives it, which must not reach the tests that follow."""
    before = (torch := sys.modules.get("torch")) is None or torch.is_grad_enabled()
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_grad_enabled(before)
