"""A LoRA file as matrices for the transformer's linear layers, checked against them before any layer changes."""

from __future__ import annotations

import inspect
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raycache.models.lora_files import LoraFault

__all__ = ["LoraWeights", "read_lora"]

_OF = "transformer."
_KEY = re.compile(r"transformer\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class LoraWeights:
    """What a LoRA adds to linear layers at a scale of 1: ``B @ A``.

    Attributes:
        layers: by layer name, A [rank, inputs] and B [outputs, rank]; B includes the factor alpha / rank.
    """

    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(a.nbytes + b.nbytes for a, b in self.layers.values())

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(len(a) for a, _ in self.layers.values())

    def digest(self) -> int:
        """A 32-bit hash, equal for equal weights."""
        found = 0
        for name in sorted(self.layers):
            found = zlib.crc32(name.encode(), found)
            for matrix in self.layers[name]:
                found = zlib.crc32(matrix.contiguous().view(torch.uint8).numpy().data, found)
        return found


def read_lora(pipe: Any, file: Path, part: str = "transformer") -> LoraWeights:
    """The LoRA in ``file`` for ``pipe``'s ``part``, in its dtype, on the CPU.

    diffusers converts the formats of other trainers (kohya, xlabs and more) to its own names.

    Raises:
        LoraFault: it is not a LoRA of this transformer, or contains more than that.
        Exception: from safetensors and diffusers, for a broken file.
    """
    load = type(pipe).lora_state_dict
    wanted: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    alphas: Mapping[str, Any] | None = None
    if "return_alphas" in inspect.signature(load).parameters:
        state, alphas, metadata = load(str(file.parent), return_alphas=True, return_lora_metadata=True, **wanted)
    else:
        state, metadata = load(str(file.parent), return_lora_metadata=True, **wanted)
    scaling = _Scaling(alphas or {}, metadata or {})
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        named = _KEY.fullmatch(key)
        if named is None:
            raise LoraFault(f"{file} contains {key}, which is not part of a LoRA of a transformer's linear layers")
        found.setdefault(named[1], {})[named[2]] = tensor
    if not found:
        raise LoraFault(f"{file} contains no LoRA of a transformer")
    transformer = getattr(pipe, part)
    return LoraWeights({name: _checked(transformer, name, parts, scaling, file) for name, parts in found.items()})


def _checked(
    transformer: nn.Module, name: str, parts: Mapping[str, torch.Tensor], scaling: _Scaling, file: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one layer, checked to fit it."""
    try:
        layer: Any = transformer.get_submodule(name)
    except AttributeError:
        raise LoraFault(f"{file} is of another model: {type(transformer).__name__} has no {name}") from None
    layer = getattr(layer, "base_layer", layer)  # peft's layer of another LoRA wraps the linear one
    if not isinstance(layer, nn.Linear) or len(parts) != 2:
        raise LoraFault(f"{file}: {name} must be a linear layer with both matrices, lora_A and lora_B")
    a, b = parts["A"], parts["B"]
    fits = a.ndim == b.ndim == 2 and (len(b), a.shape[1]) == (layer.out_features, layer.in_features)
    if not fits or b.shape[1] != len(a):
        own, its = f"{layer.out_features} x {layer.in_features}", f"{list(b.shape)} x {list(a.shape)}"
        raise LoraFault(f"{file} is of another model: {name} is {own} here, and the LoRA's is {its}")
    dtype = layer.weight.dtype
    return a.to(dtype).contiguous(), (b.float() * scaling.of(name, len(a))).to(dtype).contiguous()


class _Scaling:
    """alpha / rank of each layer, from the file: peft's own configuration, or an alpha next to the weights."""

    def __init__(self, alphas: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        self._config = {key.removeprefix(_OF): value for key, value in metadata.items()}
        self._alphas = {_layer_of(key): float(value) for key, value in alphas.items()}

    def of(self, name: str, rank: int) -> float:
        """1 if the file has no alpha: it defaults to the rank."""
        if self._config:
            from peft.utils.other import get_pattern_key

            patterns = self._config.get("alpha_pattern") or {}
            alpha: Any = patterns.get(get_pattern_key(list(patterns), name), self._config["lora_alpha"])
            return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        if not self._alphas:
            return 1.0
        usual = Counter(self._alphas.values()).most_common(1)[0][0]
        return self._alphas.get(name, usual) / rank


def _layer_of(alpha: str) -> str:
    return alpha.removeprefix(_OF).split(".lora_A.")[0].replace(".alpha", "")
