"""What a rank sets for its thread must not reach the tests that follow on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def gradients_as_before() -> Iterator[None]:
    """The stepper turns them off in the thread that drives it."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)
