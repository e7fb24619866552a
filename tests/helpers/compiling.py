"""Every way in which users compile a transformer, with a backend that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from cache_core.hooks import Attachment
from tests.helpers.tiny_flux import tiny_flux


class Counting:
    """A compile backend that counts its graphs and their calls."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph.forward(*args)

        return run


def small_flux() -> FluxTransformer2DModel:
    return tiny_flux(2, 3)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def regional(model: nn.Module, **compile_options: Any) -> nn.Module:
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, **compile_options)
    return model


def repeated(model: nn.Module, **compile_options: Any) -> nn.Module:
    model.compile_repeated_blocks(fullgraph=True, **compile_options)
    return model


def attached_then_repeated(model: nn.Module, **compile_options: Any) -> nn.Module:
    Attachment(model)
    return repeated(model, **compile_options)


def whole(model: nn.Module, **compile_options: Any) -> nn.Module:
    return torch.compile(model, **compile_options)


def attached_then_whole(model: nn.Module, **compile_options: Any) -> nn.Module:
    Attachment(model)
    return torch.compile(model, **compile_options)


def whole_in_place(model: nn.Module, **compile_options: Any) -> nn.Module:
    model.compile(**compile_options)
    return model


WAYS = [regional, repeated, attached_then_repeated, whole, attached_then_whole, whole_in_place]
