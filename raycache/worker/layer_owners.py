"""Which rank holds which layer of a text encoder that is divided over ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["bytes_of", "layer_owners"]

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def layer_owners(model: nn.Module, world_size: int) -> dict[str, int]:
    """The rank of each layer, by name; everything that is no layer is rank 0's.

    Layers follow each other on a rank, and ranks hold about the same number of bytes, rank 0 including the rest. A
    layer that shares a weight with anything else is rank 0's, too.
    """
    layers = dict(_layers_of(model))
    uses = Counter(id(tensor) for module in model.modules() for tensor in _own_tensors(module))
    alone = {name: layer for name, layer in layers.items() if all(uses[id(own)] == 1 for own in _tensors_of(layer))}
    sizes = {name: bytes_of(layer) for name, layer in alone.items()}
    whole, rank = bytes_of(model), 0
    held = whole - sum(sizes.values())
    owners = dict.fromkeys(layers, 0)
    for name, size in sizes.items():
        if held + size / 2 > whole / world_size and rank < world_size - 1:
            rank, held = rank + 1, 0
        owners[name] = rank
        held += size
    return owners


def bytes_of(model: nn.Module) -> int:
    """Of all its tensors, each counted once; of quantized ones those that are stored."""
    return sum(map(_stored, {id(own): own for own in _tensors_of(model)}.values()))


def _layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules in lists of several of one class; not lists within these, and no lists of lists, which nobody calls."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside) or not isinstance(module, nn.ModuleList):
            continue
        if len(module) > 1 and len({type(layer) for layer in module}) == 1 and not isinstance(module[0], _CONTAINERS):
            inside.append(name)
            yield from ((f"{name}.{number}", layer) for number, layer in enumerate(module))


def _tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in model.modules():
        yield from _own_tensors(module)


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensors in (module._parameters, module._buffers):
        yield from (tensor for tensor in tensors.values() if tensor is not None)


def _stored(tensor: Any) -> int:
    """A quantized tensor itself tells the bytes that it had before."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(_stored(getattr(tensor, name)) for name in names)
