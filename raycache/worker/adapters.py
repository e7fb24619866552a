"""The LoRAs of one rank: loaded on all ranks or none when a job first names one, switched before every call.

The least recently used are unloaded when they exceed the settings' bytes. Those that active jobs use stay loaded even
then: each of these jobs was admitted.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from raycache.models.denoisers import denoisers_of
from raycache.models.lora_files import LoraFault, lora_files
from raycache.protocol.job_errors import LoraNotLoaded
from raycache.protocol.lora import LoraChoice
from raycache.settings import ModelSettings
from raycache.worker.lora_layers import LoraLayers, SlotLayers, SwitchedLayers
from raycache.worker.lora_weights import LoraWeights, read_lora

__all__ = ["Adapters", "adapters_of"]

_logger = logging.getLogger("raycache.rank")


def adapters_of(pipe: Any, settings: ModelSettings, *, compiled: bool = False) -> Adapters | None:
    """Make what loads the settings' LoRAs into ``pipe``; None if they have none.

    Must be called before the transformer's first call.

    Args:
        compiled: the blocks of its transformers are compiled.

    Raises:
        LoraFault: this pipeline cannot have any.
    """
    if not settings.loras:
        return None
    pipeline, denoisers = type(pipe).__name__, list(denoisers_of(pipe))
    if not hasattr(type(pipe), "lora_state_dict") or denoisers[:1] != ["transformer"]:
        raise LoraFault(
            f"model.loras: LoRAs work with pipelines of transformers that diffusers can load LoRAs for; {pipeline} has "
            f"{', '.join(denoisers) or 'none'}. Leave model.loras out"
        )
    for name, lora in settings.loras.items():
        if lora.path_2 is not None and "transformer_2" not in denoisers:
            raise LoraFault(f"model.loras.{name}: {pipeline} has one transformer; leave path_2 out")
    return Adapters(pipe, settings, compiled=compiled)


class Adapters:
    """Used by the thread of the rank's ticks. All ranks make the same calls, in the same order.

    Attributes:
        bytes: by name, of the loaded ones; the least recently used first.
    """

    def __init__(self, pipe: Any, settings: ModelSettings, *, compiled: bool = False) -> None:
        self._pipe, self._settings = pipe, settings
        self._keys = {name: f"lora_{number}" for number, name in enumerate(settings.loras)}  # peft allows no dots
        self._users: Counter[str] = Counter()
        self.bytes: OrderedDict[str, int] = OrderedDict()
        self._layers: dict[str, LoraLayers] = {}
        readable = list(self._readable()) if compiled else []
        for part, transformer in denoisers_of(pipe).items():
            if compiled:
                self._layers[part] = SlotLayers(transformer, [lora[part] for lora in readable if part in lora])
            else:
                self._layers[part] = SwitchedLayers(transformer)
        self._changed: dict[str, frozenset[str]] = {}  # by name of a loaded LoRA, the transformers that it changes

    def load(self, name: str, group: dist.ProcessGroup | None) -> None:
        """Load this one on all ranks of ``group``, or on none.

        Raises:
            LoraNotLoaded: on all of them, if any rank could not; says which one, and why.
        """
        read, error, device = None, "", self._pipe.transformer.device
        try:
            read = self._read(name)
        except Exception as raised:  # a file may have any fault
            error = f"{type(raised).__name__}: {raised}"
        digest = 0 if read is None else _digest(read)
        _agree(name, error, digest, group, device)
        assert read is not None  # or this rank would have raised
        nbytes = sum(weights.nbytes for weights in read.values())
        self._make_room(nbytes)
        try:
            for part, weights in read.items():
                self._layers[part].install(self._keys[name], weights)
        except Exception as raised:  # out of memory, for example
            error = f"{type(raised).__name__}: {raised}"
        try:
            _agree(name, error, digest, group, device)
        except LoraNotLoaded:
            for part in read:
                self._layers[part].remove(self._keys[name])
            raise
        self.bytes[name], self._changed[name] = nbytes, frozenset(read)
        rank = max(weights.rank for weights in read.values())
        _logger.info("LoRA %s loaded: %d bytes, rank %d", name, nbytes, rank)

    @contextmanager
    def held(self, choice: LoraChoice | None) -> Iterator[None]:
        """Keep it loaded while a job uses it."""
        if choice is None:
            yield
            return
        self.bytes.move_to_end(choice.name)
        self._users[choice.name] += 1
        try:
            yield
        finally:
            self._users[choice.name] -= 1
            self._make_room(0)

    def use(self, choice: LoraChoice | None) -> None:
        """Use this one, or none, for all calls of the transformers from now on."""
        for part, layers in self._layers.items():
            if choice is None or part not in self._changed[choice.name]:
                layers.use(None, 0.0)
            else:
                layers.use(self._keys[choice.name], choice.scale)

    def _read(self, name: str) -> dict[str, LoraWeights]:
        """Weights by the name of the transformer."""
        files = lora_files(self._settings.loras[name], self._settings)
        read = {part: read_lora(self._pipe, file, part) for part, file in files.items()}
        if (nbytes := sum(weights.nbytes for weights in read.values())) > self._settings.lora_bytes:
            raise LoraFault(f"{nbytes} bytes are more than model.lora_bytes={self._settings.lora_bytes}")
        return read

    def _make_room(self, nbytes: int) -> None:
        """Unload unused ones, least recently used first, until so many more bytes fit."""
        for name in list(self.bytes):
            if sum(self.bytes.values()) + nbytes <= self._settings.lora_bytes:
                return
            if not self._users[name]:
                self.use(None)
                for part in self._changed.pop(name):
                    self._layers[part].remove(self._keys[name])
                del self.bytes[name]

    def _readable(self) -> Iterator[dict[str, LoraWeights]]:
        """The ones that can be read now; a fault in another is reported to the job that names it."""
        for name in self._settings.loras:
            try:
                yield self._read(name)
            except Exception as error:
                _logger.warning("LoRA %s cannot be read: %s: %s", name, type(error).__name__, error)


def _digest(read: Mapping[str, LoraWeights]) -> int:
    """Equal for equal weights of all transformers: 32 bits."""
    return zlib.crc32(repr(sorted((part, weights.digest()) for part, weights in read.items())).encode())


def _agree(name: str, error: str, digest: int, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Check that no rank has an ``error``, and that all have the same weights.

    Raises:
        LoraNotLoaded: on every rank, with all ranks' errors.
    """
    said = [error]
    if group is not None:
        told = torch.tensor([int(bool(error)), digest, -digest], dtype=torch.int64, device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX, group)
        failed, most, least = told.tolist()
        if failed:
            said = [""] * dist.get_world_size(group)
            dist.all_gather_object(said, error, group)
        elif most != -least:
            said = [f"the file's weights differ between ranks (digest on this rank: {digest:08x})"]
    if any(said):
        words = "; ".join(
            f"rank {rank}: {words}" if len(said) > 1 else words for rank, words in enumerate(said) if words
        )
        raise LoraNotLoaded(f"LoRA {name!r} could not be loaded: {words}")
