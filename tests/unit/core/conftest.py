"""One thread per test process: the models are tiny, and the order of float additions must not depend on the machine."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from tests.unit.core.tiny_flux import tiny_flux


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def flux() -> FluxTransformer2DModel:
    """A fresh tiny FLUX: 3 double and 5 single blocks."""
    return tiny_flux()
