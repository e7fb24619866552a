"""Values with tensors in them from rank to rank: any structure, of which the others need to know nothing.

The structure goes as a pickle with a number for each tensor, the tensors as the bytes of one buffer.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["FirstFailed", "from_first", "on_device", "packed", "specs_of", "unpacked"]

#: Of a tensor: its shape and type.
Spec = tuple[torch.Size, torch.dtype]
#: Bytes that each tensor in a buffer begins at a multiple of: enough for any type.
_ALIGNED = 16


class FirstFailed(Exception):
    """Rank 0 could not make what all ranks wait for; raised by all of them alike."""


def from_first(make: Callable[[], Any], group: dist.ProcessGroup | None, device: torch.device) -> Any:
    """What ``make`` returns on rank 0 of ``group``, on every rank, its tensors on ``device``. All ranks must call it.

    Args:
        make: called on rank 0 alone.
        device: one that the group can send from.

    Raises:
        FirstFailed: on all ranks, where ``make`` raised.
    """
    if group is None:
        return on_device(make(), device)
    cause, told, tensors = None, list[Any]([None]), list[torch.Tensor]()
    if dist.get_rank(group) == 0:
        try:
            structure, tensors = _taken_apart(make())
            buffer = packed(tensors, device)  # here, so that a lack of memory is told, too
            told = [(structure, specs_of(tensors), "")]
        except Exception as error:
            cause, told = error, [(b"", [], f"{type(error).__name__}: {error}")]
    dist.broadcast_object_list(told, group=group, group_src=0, device=device)
    structure, specs, failure = told[0]
    if failure:
        raise FirstFailed(failure) from cause
    if dist.get_rank(group):
        buffer = torch.empty(_ends(specs)[-1], dtype=torch.uint8, device=device)
    dist.broadcast(buffer, group=group, group_src=0)
    return _put_together(structure, unpacked(buffer, specs))


def on_device(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors in it on ``device``."""
    structure, tensors = _taken_apart(value)
    return _put_together(structure, [tensor.to(device) for tensor in tensors])


def specs_of(tensors: Sequence[torch.Tensor]) -> list[Spec]:
    """What :func:`unpacked` must know of them."""
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


def packed(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Bytes of all of them, uint8 [n] on ``device``."""
    specs = specs_of(tensors)
    ends = _ends(specs)
    buffer = torch.zeros(ends[-1], dtype=torch.uint8, device=device)
    for start, tensor in zip(ends, tensors, strict=False):
        if tensor.numel():
            flat = tensor.contiguous().reshape(-1).view(torch.uint8)
            buffer[start : start + len(flat)] = flat.to(device)
    return buffer


def unpacked(buffer: torch.Tensor, specs: Sequence[Spec]) -> list[torch.Tensor]:
    """The tensors in a buffer, in whose memory they are."""
    tensors = []
    for start, (shape, dtype) in zip(_ends(specs), specs, strict=False):
        size = shape.numel() * dtype.itemsize
        tensors.append(buffer[start : start + size].view(dtype).reshape(shape))
    return tensors


def _ends(specs: Sequence[Spec]) -> list[int]:
    """Where the tensors begin in a buffer, and where that ends."""
    ends = [0]
    for shape, dtype in specs:
        size = shape.numel() * dtype.itemsize
        ends.append(ends[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return ends


def _taken_apart(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    return stream.getvalue(), pickler.tensors


def _put_together(structure: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    return _Unpickler(structure, tensors).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, structure: bytes, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(structure))
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]
