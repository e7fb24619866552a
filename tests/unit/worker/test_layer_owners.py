"""Which rank holds which layer of a text encoder, and what such layers may not be given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from raycache.worker.layer_owners import bytes_of, layer_owners
from raycache.worker.remote_layers import LayerFailed, RemoteLayers


def _model(layers: int = 30, embedded: int = 100) -> Any:
    model: Any = nn.Module()
    model.embedding = nn.Embedding(embedded, 10)
    model.layers = nn.ModuleList(nn.Linear(10, 10, bias=False) for _ in range(layers))
    return model


@pytest.mark.parametrize(
    ("embedded", "ranks", "shares"),
    [(100, 4, [0, 10, 10, 10]), (0, 3, [10, 10, 10]), (100, 1, [30]), (1000, 2, [0, 30]), (60, 2, [12, 18])],
)
def test_shares_are_even_and_in_order(embedded: int, ranks: int, shares: list[int]):
    """A layer has as many numbers as ten words."""
    owners = list(layer_owners(_model(embedded=embedded), ranks).values())
    assert owners == sorted(owners)
    assert [owners.count(rank) for rank in range(ranks)] == shares


def test_what_shares_a_weight_stays_on_the_first_rank():
    model = _model(4, embedded=10)
    model.layers[3].weight = model.embedding.weight
    assert layer_owners(model, 2) == {"layers.0": 0, "layers.1": 1, "layers.2": 1, "layers.3": 0}


def test_lists_of_lists_are_not_layers_but_what_they_hold_is():
    model = nn.Module()
    model.stages = nn.ModuleList(nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))
    assert list(layer_owners(model, 2)) == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]


def test_a_layer_s_own_lists_stay_in_it():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleList([nn.Linear(4, 4)] * 2) for _ in range(1))
    model.blocks = nn.ModuleList(nn.Sequential(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])) for _ in range(2))
    assert list(layer_owners(model, 2)) == ["layers.0.0", "layers.0.1", "blocks.0", "blocks.1"]


def test_quantized_weights_count_what_is_stored():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(256, 256, bias=False, dtype=torch.bfloat16))
    whole = bytes_of(model)
    quantize_(model, Int8WeightOnlyConfig())
    assert 0.5 * whole < bytes_of(model) < 0.52 * whole


@pytest.mark.parametrize("kwargs", [{"past_key_values": DynamicCache()}, {"use_cache": True}])
def test_a_layer_elsewhere_fills_no_key_value_cache(kwargs: dict[str, Any]):
    """It would fill a copy, and the next token would be another one."""
    nobody: Any = None
    with pytest.raises(LayerFailed, match=r"text_encoder\.layers\.3 on rank 1: .*key-value cache.*one_rank"):
        RemoteLayers(nobody, torch.device("cpu"), nobody).call(("text_encoder", "layers.3"), 1, (), kwargs)
