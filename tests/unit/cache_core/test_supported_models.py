"""The list of supported transformers: complete, tested, published."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import diffusers.models.transformers
import pytest
import torch
from diffusers.models.modeling_utils import ModelMixin

from cache_core import NoCacheOptions, UnsupportedModelError, cache_session, supported_models
from cache_core.supported import UNSUPPORTED
from tests.helpers.tiny_transformers import TINY


def listed() -> set[str]:
    return {name for classes in supported_models().values() for name in classes} | set(UNSUPPORTED)


def test_every_transformer_of_diffusers_is_listed():
    """So that a new diffusers release shows what it brought."""
    found = {"UVit2DModel"}  # of cache-dit's list, and among the U-Nets
    for info in pkgutil.iter_modules(diffusers.models.transformers.__path__):
        module = importlib.import_module(f"{diffusers.models.transformers.__name__}.{info.name}")
        found |= {name for name, cls in vars(module).items() if is_model(cls) and cls.__module__ == module.__name__}
    assert found == listed()


def is_model(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, ModelMixin)


def test_no_family_that_cache_dit_registers_is_missing_without_a_reason():
    pytest.importorskip("cache_dit", reason="the peer comes with the extra `test`")
    from cache_dit.caching.block_adapters import adapters

    named = {name for f in vars(adapters).values() if inspect.isfunction(f) for name in f.__code__.co_names}
    theirs = {name for name in named if is_model(getattr(diffusers, name, None)) and "ControlNet" not in name}
    assert len(theirs) >= 40
    assert theirs <= listed()


def test_supported_means_tested():
    classes = {name for group in supported_models().values() for name in group}
    assert classes == {name.partition("+")[0] for name in TINY}
    assert classes.isdisjoint(UNSUPPORTED)


def test_an_unsupported_transformer_is_refused_with_the_reason():
    model = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, embedding_dim=8, num_embeddings=4
    )
    with (
        pytest.raises(UnsupportedModelError, match="PriorTransformer cannot be cached: generates an embedding"),
        cache_session(model, NoCacheOptions()),
    ):
        pass


def test_a_model_without_known_blocks_is_refused_by_name():
    with (
        pytest.raises(UnsupportedModelError, match=r"supported_models\(\) lists what works"),
        cache_session(torch.nn.Linear(2, 2), NoCacheOptions()),
    ):
        pass
