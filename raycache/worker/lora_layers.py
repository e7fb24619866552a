"""LoRAs in a transformer's linear layers, at most one per call: one way without compilation, one with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn

from raycache.models.lora_files import LoraFault
from raycache.worker.lora_weights import LoraWeights

__all__ = ["LoraLayers", "SlotLayers", "SwitchedLayers"]


class LoraLayers(Protocol):
    """Loaded LoRAs of one transformer, by name."""

    def install(self, name: str, weights: LoraWeights) -> None:
        """Load one; calls are not affected yet."""

    def remove(self, name: str) -> None:
        """Unload it, even if only partly loaded; it must not be in use."""

    def use(self, name: str | None, scale: float) -> None:
        """Use this one, or none, for all calls from now on."""


class SwitchedLayers:
    """Every LoRA has its own matrices in the layers that it changes; a switch sets which ones each layer uses.

    peft's own `set_adapter` also marks parameters for training, which can take longer than a call.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._layers: list[Any] = []
        self._used: tuple[str | None, float] = (None, 1.0)

    def install(self, name: str, weights: LoraWeights) -> None:
        """Load one; calls are not affected yet."""
        _inject(self._transformer, name, weights)
        self._layers = _layers(self._transformer)
        self._switch(*self._used)  # peft has already switched to the new one

    def remove(self, name: str) -> None:
        """Unload it, even if only partly loaded; it must not be in use."""
        from diffusers.utils import delete_adapter_layers

        self._layers = _layers(self._transformer)
        self._switch(*self._used)
        delete_adapter_layers(self._transformer, name)

    def use(self, name: str | None, scale: float) -> None:
        """Use this one, or none, for all calls from now on."""
        if self._used != (name, scale):
            self._switch(name, scale)
            self._used = name, scale

    def _switch(self, name: str | None, scale: float) -> None:
        active = [] if name is None else [name]
        for layer in self._layers:
            layer._active_adapter = active
            if name is not None:
                layer.set_scale(name, scale)


class SlotLayers:
    """One slot in every layer that any LoRA changes; a switch replaces its values, so compiled blocks see one LoRA.

    Loaded LoRAs are kept outside the layers, padded with zeros to the slot's rank. Without a LoRA the slot is scaled by
    zero. So nothing changes that the guards of a compiled block check.

    Args:
        transformer: its blocks have not been called since they were compiled.
        of: LoRAs that will be loaded; others fit if they change the same layers and have no larger rank.
    """

    _SLOT = "slot"

    def __init__(self, transformer: Any, of: Iterable[LoraWeights]) -> None:
        from peft.utils.hotswap import prepare_model_for_compiled_hotswap

        loras = list(of)
        self._rank = max((lora.rank for lora in loras), default=0)
        pairs = {layer: pair for lora in loras for layer, pair in lora.layers.items()}
        zeros = {
            layer: (a.new_zeros(self._rank, a.shape[1]), b.new_zeros(len(b), self._rank))
            for layer, (a, b) in pairs.items()
        }
        self._names = list(zeros)
        self._loaded: dict[str, list[tuple[torch.Tensor, torch.Tensor] | None]] = {}
        self._held: str | None = None
        self._used: tuple[str | None, float] = (None, 0.0)
        self._slots: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._scales: list[torch.Tensor] = []
        if not zeros:
            return
        _inject(transformer, self._SLOT, LoraWeights(zeros))
        prepare_model_for_compiled_hotswap(transformer)  # scales become tensors
        for name in self._names:
            layer: Any = transformer.get_submodule(name)
            self._slots.append((layer.lora_A[self._SLOT].weight, layer.lora_B[self._SLOT].weight))
            self._scales.append(layer.scaling[self._SLOT])
        torch._foreach_zero_(self._scales)

    def install(self, name: str, weights: LoraWeights) -> None:
        """Load one; calls are not affected yet."""
        more = sorted(set(weights.layers) - set(self._names))
        if more or weights.rank > self._rank:
            what = f"changes {more[0]}" if more else f"has rank {weights.rank}"
            raise LoraFault(
                f"it {what}, unlike all LoRAs when this gang's blocks were compiled; restart the service to use it"
            )
        device = self._slots[0][0].device
        padded: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        for layer in self._names:
            own = weights.layers.get(layer)
            padded.append(None if own is None else _padded(own, self._rank, device))
        self._loaded[name] = padded

    def remove(self, name: str) -> None:
        """Unload it, even if only partly loaded; it must not be in use."""
        self._loaded.pop(name, None)
        if self._held == name:
            self._held = None

    def use(self, name: str | None, scale: float) -> None:
        """Use this one, or none, for all calls from now on."""
        if name is None:
            if self._used[0] is not None:
                torch._foreach_zero_(self._scales)
        elif self._used != (name, scale):
            self._fill(name, scale)
        self._used = name, scale

    @torch.no_grad()
    def _fill(self, name: str, scale: float) -> None:
        own = self._loaded[name]
        if self._held != name:
            pairs = [(slot, each) for slot, each in zip(self._slots, own, strict=True) if each is not None]
            into: list[torch.Tensor] = [matrix for slot, _ in pairs for matrix in slot]
            torch._foreach_copy_(into, [matrix for _, each in pairs for matrix in each])
            self._held = name
        for tensor, each in zip(self._scales, own, strict=True):
            tensor.fill_(0.0 if each is None else scale)


def _inject(transformer: Any, name: str, weights: LoraWeights) -> None:
    """Let peft wrap the linear layers, with these weights, on each layer's device."""
    state = {}
    for layer, (a, b) in weights.layers.items():
        device = transformer.get_submodule(layer).weight.device
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = a.to(device), b.to(device)
    transformer.load_lora_adapter(state, prefix=None, adapter_name=name, low_cpu_mem_usage=True)
    for layer in _layers(transformer):
        for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
            parameter.requires_grad_(False)


def _layers(transformer: nn.Module) -> list[Any]:
    """The layers that peft has made."""
    from peft.tuners.lora import LoraLayer

    return [module for module in transformer.modules() if isinstance(module, LoraLayer)]


def _padded(
    pair: tuple[torch.Tensor, torch.Tensor], rank: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product at a higher rank: rows and columns of zeros are added."""
    (a, b), more = pair, rank - len(pair[0])
    return nn.functional.pad(a.to(device), (0, 0, 0, more)), nn.functional.pad(b.to(device), (0, more))
