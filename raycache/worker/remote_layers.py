"""Text encoders whose layers are divided over the ranks: rank 0 encodes, and calls the layers that other ranks hold.

Only hidden states travel, a few megabytes per layer; weights stay where they are. A prompt is encoded at the speed of
one device and by the same arithmetic, so the result is that of an undivided encoder to the bit. transformers' tensor
parallelism divides within layers instead; not all encoders have a plan for it, and sums of parts round differently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from raycache.worker.exchange import Spec, buffer_for, packed, put_together, specs_of, taken_apart, unpacked

__all__ = ["LayerFailed", "RemoteLayers", "layer_owners"]


#: A value to send: its structure, its tensors' shapes and dtypes, and their bytes.
_Packet: TypeAlias = tuple[bytes, list[Spec], torch.Tensor]


class LayerFailed(Exception):
    """A layer failed on the rank that holds it, or a rank has no memory for what a layer gets or returns."""


def layer_owners(model: nn.Module, world_size: int) -> dict[str, int]:
    """Which rank holds each layer, by name; everything that is no layer is rank 0's.

    Layers follow each other on a rank, and ranks hold about the same number of bytes, rank 0 including the rest.
    """
    layers = dict(_layers_of(model))
    sizes = {name: _bytes_of(layer) for name, layer in layers.items()}
    held = _bytes_of(model) - sum(sizes.values())
    share, rank, owners = (held + sum(sizes.values())) / world_size, 0, dict[str, int]()
    for name, size in sizes.items():
        if held + size / 2 > share and rank < world_size - 1:
            rank, held = rank + 1, 0
        owners[name] = rank
        held += size
    return owners


def _layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules in lists of several of one class; not lists within these."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(layer) for layer in module}) == 1:
            inside.append(name)
            yield from ((f"{name}.{number}", layer) for number, layer in enumerate(module))


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@dataclass
class RemoteLayers:
    """The layers of one pipeline's text encoders, divided over the ranks of ``group``.

    Attributes:
        device: that this rank keeps and computes its layers on.
        mine: the layers that this rank runs for rank 0, by encoder and name.
    """

    group: dist.ProcessGroup
    device: torch.device
    mine: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    def divide(self, encoders: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Keep this rank's share of ``encoders``, which are on the CPU, on its device.

        Returns:
            On rank 0 the encoders, which call the other ranks; on all others nothing.
        """
        rank = dist.get_rank(self.group)
        for part, model in encoders.items():
            owners = layer_owners(model, dist.get_world_size(self.group))
            for config in {id(own): own for own in (model.config, model.config.get_text_config())}.values():
                config.use_cache = False  # layers would fill it where nobody reads it
            away = {name: model.get_submodule(name) for name, owner in owners.items() if owner}
            if rank:
                own = {(part, name): layer for name, layer in away.items() if owners[name] == rank}
                self.mine |= {name: layer.to(self.device).eval() for name, layer in own.items()}
                continue
            for name, layer in away.items():
                _empty(layer)
                vars(layer)["forward"] = _Call(self, (part, name), owners[name])
            model.to(self.device).eval()
        return {} if rank else dict(encoders)

    def serve(self) -> None:
        """Run this rank's layers until rank 0 has encoded. Not on rank 0."""
        while True:
            try:
                asked = self._received(0)
            except LayerFailed:  # no memory for what it is given, and rank 0 knows
                continue
            if asked is None:
                return
            with contextlib.suppress(LayerFailed):  # rank 0 has no memory for the answer, and knows
                self._send(self._answer(*asked), 0)

    def release(self) -> None:
        """Rank 0 has encoded, or failed to: the others need not wait for more."""
        for rank in range(1, dist.get_world_size(self.group)):
            self._send(self._packet(None), rank)

    def call(self, name: tuple[str, str], owner: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the layer ``name`` of rank ``owner`` returns.

        Raises:
            LayerFailed: it raised, or one of the two ranks has no memory.
        """
        self._send(self._packet((name, args, kwargs)), owner)
        failure, answer = self._received(owner)
        if failure:
            raise LayerFailed(f"{'.'.join(name)} on rank {owner}: {failure}")
        return answer

    def _answer(self, name: tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Packet:
        try:
            with torch.no_grad():
                return self._packet(("", self.mine[name](*args, **kwargs)))
        except Exception as error:
            return self._packet((_words(error), None))

    def _packet(self, value: Any) -> _Packet:
        """Made before anything is sent, so that running out of memory here holds up nobody."""
        structure, tensors = taken_apart(value)
        return structure, specs_of(tensors), packed(tensors, self.device)

    def _send(self, packet: _Packet, peer: int) -> None:
        """Structure and sizes first; the tensors only if the peer has memory for them."""
        structure, specs, buffer = packet
        self._tell((structure, specs), peer)
        if specs:
            if no_room := self._told(peer):
                raise LayerFailed(f"rank {peer}: {no_room}")
            dist.send(buffer, group=self.group, group_dst=peer)

    def _received(self, peer: int) -> Any:
        structure, specs = self._told(peer)
        if not specs:
            return put_together(structure, [])
        try:
            buffer = buffer_for(specs, self.device)
        except Exception as error:
            self._tell(_words(error), peer)
            raise LayerFailed(_words(error)) from error
        self._tell("", peer)
        dist.recv(buffer, group=self.group, group_src=peer)
        return put_together(structure, unpacked(buffer, specs))

    def _tell(self, value: Any, peer: int) -> None:
        dist.send_object_list([value], group=self.group, group_dst=peer, device=self.device)

    def _told(self, peer: int) -> Any:
        told = [None]
        dist.recv_object_list(told, group=self.group, group_src=peer, device=self.device)
        return told[0]


class _Call:
    """The forward of a layer that another rank holds."""

    def __init__(self, layers: RemoteLayers, name: tuple[str, str], owner: int) -> None:
        self._layers, self._name, self._owner = layers, name, owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._layers.call(self._name, self._owner, args, kwargs)


def _empty(layer: nn.Module) -> None:
    """Let go of the weights. The module stays, because transformers finds layers by their class to record outputs."""
    for module in layer.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update(dict.fromkeys(tensors))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
