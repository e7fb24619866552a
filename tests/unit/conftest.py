"""Before anything imports torch: a thread for each process, and one folder of tiny models for all of a run."""

from __future__ import annotations

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """The workers of a run, and processes that tests start, inherit what is set here."""
    # As many workers as cores run at once: more threads each would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "TINY_MODELS" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="tiny-models-")
        config.add_cleanup(folder.cleanup)
        os.environ["TINY_MODELS"] = folder.name
