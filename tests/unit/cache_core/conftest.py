"""One thread per test process: the models are tiny, and the order of float additions must not depend on the machine."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from raycache.demo.noise import build_noise_model
from tests.helpers.flux_pipe import load
from tests.helpers.tiny_flux import tiny_flux


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def flux() -> FluxTransformer2DModel:
    """A fresh tiny FLUX: 3 double and 5 single blocks."""
    return tiny_flux()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The noise model on disk: 2 double and 4 single blocks."""
    return build_noise_model(tmp_path_factory.mktemp("noise") / "model", layers=2, single_layers=4)


@pytest.fixture(scope="session")
def _loaded(folder) -> FluxPipeline:
    return load(folder)


@pytest.fixture
def pipe(_loaded) -> FluxPipeline:
    """A fresh FluxPipeline, copied, which takes half the time of loading it."""
    pipe = FluxPipeline(**{name: copy.deepcopy(part) for name, part in _loaded.components.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe
