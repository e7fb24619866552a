"""What needs a GPU to be believed: ``python -m pytest tests/gpu``; ``python -m benchmarks.gpu`` begins with it.

Without one all is skipped. RAYCACHE_TEST_DEVICE=cpu rehearses what a CPU can: the tests themselves.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("RAYCACHE_TEST_DEVICE", "cuda")


@pytest.fixture
def device() -> str:
    """``cuda``, or ``cpu`` in a rehearsal."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch sees none")
    return DEVICE


@pytest.fixture
def gpu(device: str) -> str:
    """``cuda``, for what a CPU cannot rehearse."""
    if device != "cuda":
        pytest.skip("needs a GPU, and cannot be rehearsed on a CPU")
    return device


@pytest.fixture
def two_devices(device: str) -> str:
    """As ``device``, of which there are two."""
    if device == "cuda" and (found := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs 2 GPUs, this machine has {found}")
    return device
