"""Text encoders whose layers are divided over the ranks: rank 0 encodes, and calls the layers that other ranks hold.

What a layer is given and returns travels (a few megabytes; with T5's position biases some tens); weights stay where
they are. A prompt is encoded at the speed of one device and by the same arithmetic, so the result is that of an
undivided encoder to the bit. transformers' tensor parallelism divides within layers instead; not all encoders have a
plan for it, and sums of parts round differently.

Whoever sends something tells its structure and sizes first, over a group of its own on the CPU, where no message needs
memory of a GPU; the tensors follow when the other rank has memory for them.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import Cache

from raycache.worker.exchange import Spec, buffer_for, packed, put_together, specs_of, taken_apart, unpacked
from raycache.worker.layer_owners import layer_owners

__all__ = ["LayerFailed", "RemoteLayers"]

_logger = logging.getLogger("raycache.rank")

#: A value to send: its structure, its tensors' shapes and dtypes, and their bytes.
_Packet: TypeAlias = tuple[bytes, list[Spec], torch.Tensor | None]
#: No value: rank 0 has encoded.
_DONE: _Packet = (b"", [], None)


class LayerFailed(Exception):
    """A layer failed on the rank that holds it, or a rank has no memory for what a layer gets or returns."""


class _NoRoom(Exception):
    """One of two ranks has no memory for what would be sent; both know."""


@dataclass
class RemoteLayers:
    """The layers of one pipeline's text encoders, divided over the ranks of ``group``.

    Attributes:
        device: that this rank keeps and computes its layers on.
        control: a group of the same ranks that sends from the CPU.
        mine: the layers that this rank runs for rank 0, by encoder and name.
    """

    group: dist.ProcessGroup
    device: torch.device
    control: dist.ProcessGroup
    mine: dict[tuple[str, str], nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, group: dist.ProcessGroup, device: torch.device, timeout_s: float) -> RemoteLayers:
        """All ranks must call it. ``timeout_s``: how long a rank may wait for a message."""
        ranks, timeout = dist.get_process_group_ranks(group), timedelta(seconds=timeout_s)
        control: Any = dist.new_group(ranks, backend="gloo", timeout=timeout)
        return cls(group, device, control)

    def limit(self, timeout_s: float) -> None:
        """From now on a rank may wait so long for a message."""
        _set_pg_timeout(timedelta(seconds=timeout_s), self.control)

    def divide(self, encoders: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Keep this rank's share of ``encoders``, which are on the CPU, on its device.

        Returns:
            On rank 0 the encoders, which call the other ranks; on all others nothing.
        """
        rank, world_size = dist.get_rank(self.group), dist.get_world_size(self.group)
        for part, model in encoders.items():
            owners = layer_owners(model, world_size)
            for config in {id(own): own for own in (model.config, model.config.get_text_config())}.values():
                config.use_cache = False  # layers would fill it where nobody reads it
            if rank == 0:
                held = Counter(owners.values())
                _logger.info("%s: layers by rank %s", part, [held[each] for each in range(world_size)])
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
            except _NoRoom:  # rank 0 knows
                continue
            if asked == _DONE:
                return
            with contextlib.suppress(_NoRoom):  # rank 0 has none for the answer, and knows
                self._send(self._answer(asked), 0)

    def release(self) -> None:
        """Rank 0 has encoded, or failed to: the others need not wait for more."""
        for rank in range(1, dist.get_world_size(self.group)):
            self._send(_DONE, rank)

    def call(self, name: tuple[str, str], owner: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the layer ``name`` of rank ``owner`` returns.

        Raises:
            LayerFailed: it raised, or one of the two ranks has no memory.
        """
        where = f"{'.'.join(name)} on rank {owner}"
        if kwargs.get("use_cache") or any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise LayerFailed(f"{where}: it would fill a key-value cache there; use model.text_encoders: one_rank")
        try:
            self._send(_packet((name, args, kwargs), self.device), owner)
            failure, answer = _unpacked(self._received(owner))
        except _NoRoom as error:
            raise LayerFailed(f"{where}: {error}") from error
        if failure:
            raise LayerFailed(f"{where}: {failure}")
        return answer

    def _answer(self, asked: _Packet) -> _Packet:
        try:
            name, args, kwargs = _unpacked(asked)
            with torch.no_grad():
                return _packet(("", self.mine[name](*args, **kwargs)), self.device)
        except Exception as error:
            return _packet((_words(error), None), self.device)

    def _send(self, packet: _Packet, peer: int) -> None:
        structure, specs, buffer = packet
        self._tell((structure, specs), peer)
        if buffer is not None:
            if no_room := self._told(peer):
                raise _NoRoom(no_room)
            dist.send(buffer, group=self.group, group_dst=peer)

    def _received(self, peer: int) -> _Packet:
        structure, specs = self._told(peer)
        if not specs:
            return structure, [], None
        try:
            buffer = buffer_for(specs, self.device)
        except Exception as error:
            self._tell(_words(error), peer)
            raise _NoRoom(_words(error)) from error
        self._tell("", peer)
        dist.recv(buffer, group=self.group, group_src=peer)
        return structure, specs, buffer

    def _tell(self, value: Any, peer: int) -> None:
        dist.send_object_list([value], group=self.control, group_dst=peer)

    def _told(self, peer: int) -> Any:
        told = [None]
        dist.recv_object_list(told, group=self.control, group_src=peer)
        return told[0]


def _packet(value: Any, device: torch.device) -> _Packet:
    """Made before anything is sent, so that running out of memory here holds up nobody."""
    structure, tensors = taken_apart(value)
    return structure, specs_of(tensors), packed(tensors, device) if tensors else None


def _unpacked(packet: _Packet) -> Any:
    """Only when all of it was received, so that ranks stay in step if it cannot be read."""
    structure, specs, buffer = packet
    return put_together(structure, [] if buffer is None else unpacked(buffer, specs))


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
