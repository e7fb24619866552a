"""Sends values that contain tensors, in any structure, from one rank to the others.

The structure is sent as a pickle with a number for each tensor, the tensors as the bytes of one buffer.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = [
    "FirstFailed",
    "OthersFailed",
    "Spec",
    "buffer_for",
    "from_first",
    "packed",
    "put_together",
    "specs_of",
    "taken_apart",
    "to_owners",
    "unpacked",
]

#: Shape and dtype of a tensor.
Spec = tuple[torch.Size, torch.dtype]
#: Alignment in bytes of each tensor in a buffer: enough for any dtype.
_ALIGNED = 16


class FirstFailed(Exception):
    """Rank 0 failed to make what all ranks wait for, or a rank has no memory for it; raised on all of them."""


class OthersFailed(Exception):
    """Other ranks failed before they could send."""


def from_first(make: Callable[[], Any], group: dist.ProcessGroup | None, device: torch.device) -> Any:
    """What ``make`` returns on rank 0 of ``group``, on every rank, its tensors on ``device``. All ranks must call it.

    Args:
        make: called on rank 0 alone.
        device: a device that the group can send from.

    Raises:
        FirstFailed: on all ranks, if ``make`` raised or a rank has no memory for its result.
    """
    if group is None:
        structure, tensors = taken_apart(make())
        return put_together(structure, [tensor.to(device) for tensor in tensors])
    cause: Exception | None = None
    told: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            structure, tensors = taken_apart(make())
            buffer = packed(tensors, device)  # inside the try, so that running out of memory is reported, too
            told = [(structure, specs_of(tensors), "")]
        except Exception as error:
            cause, told = error, [(b"", [], f"{type(error).__name__}: {error}")]
    dist.broadcast_object_list(told, group=group, group_src=0, device=device)
    structure, specs, failure = told[0]
    if failure:
        raise FirstFailed(failure) from cause
    no_room = ""
    try:
        if dist.get_rank(group):
            buffer = buffer_for(specs, device)
    except Exception as error:  # no rank may send to one that cannot receive
        cause, no_room = error, f"{type(error).__name__}: {error}"
    said = [""] * dist.get_world_size(group)
    dist.all_gather_object(said, no_room, group)
    if any(said):
        raise FirstFailed("; ".join(f"rank {rank}: {words}" for rank, words in enumerate(said) if words)) from cause
    dist.broadcast(buffer, group=group, group_src=0)
    return put_together(structure, unpacked(buffer, specs))


def to_owners(
    mine: Sequence[Sequence[torch.Tensor]] | Exception,
    owners: Sequence[int],
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> dict[int, list[Sequence[torch.Tensor]]]:
    """Every rank's tensors for each row, to the rank that the row is of. All ranks must call it.

    Args:
        mine: tensors of this rank by row, as many as it likes; or why there are none.
        owners: rank by row.
        device: one that the group can send from.

    Returns:
        For each of this rank's rows, the tensors of each rank.

    Raises:
        Exception: ``mine``, if it is one; or this rank's out-of-memory error.
        OthersFailed: on all other ranks, if that happened on any.
    """
    if isinstance(mine, Exception):
        _tell(mine, None, group)
        raise mine
    specs: list[list[list[Spec]]] = _tell(None, [specs_of(tensors) for tensors in mine], group)
    rank = 0 if group is None else dist.get_rank(group)
    try:
        out = {row: packed(mine[row], device) for row, owner in enumerate(owners) if owner != rank and mine[row]}
        into = {
            (row, by): buffer_for(theirs[row], device)
            for row, owner in enumerate(owners)
            for by, theirs in enumerate(specs)
            if owner == rank != by and theirs[row]
        }
    except Exception as error:  # out of memory, for example: no rank may wait for data that never comes
        _tell(error, None, group)
        raise
    _tell(None, None, group)
    moves = [dist.P2POp(dist.isend, out[row], group=group, group_peer=owners[row]) for row in out]
    moves += [dist.P2POp(dist.irecv, buffer, group=group, group_peer=by) for (_, by), buffer in into.items()]
    for move in dist.batch_isend_irecv(moves) if moves else ():
        move.wait()
    return {
        row: [
            mine[row] if by == rank else unpacked(into[row, by], theirs[row]) if theirs[row] else ()
            for by, theirs in enumerate(specs)
        ]
        for row, owner in enumerate(owners)
        if owner == rank
    }


def _tell(failure: Exception | None, told: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Exchange what each rank has to report.

    Raises:
        OthersFailed: other ranks failed, and this one did not.
    """
    words = "" if failure is None else f"{type(failure).__name__}: {failure}"
    said: list[Any] = [(words, told)]
    if group is not None:
        said *= dist.get_world_size(group)
        dist.all_gather_object(said, (words, told), group)
    failures = [f"rank {rank}: {words}" for rank, (words, _) in enumerate(said) if words]
    if failures and failure is None:
        raise OthersFailed("; ".join(failures))
    return [each for _, each in said]


def specs_of(tensors: Sequence[torch.Tensor]) -> list[Spec]:
    """What :func:`unpacked` needs to know about them."""
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
    """The tensors in a buffer, as views of its memory."""
    tensors = []
    for start, (shape, dtype) in zip(_ends(specs), specs, strict=False):
        size = shape.numel() * dtype.itemsize
        tensors.append(buffer[start : start + size].view(dtype).reshape(shape))
    return tensors


def buffer_for(specs: Sequence[Spec], device: torch.device) -> torch.Tensor:
    """Memory that such tensors fit in, uint8 [n] on ``device``."""
    return torch.empty(_ends(specs)[-1], dtype=torch.uint8, device=device)


def _ends(specs: Sequence[Spec]) -> list[int]:
    """Offset of each tensor in a buffer, and the buffer's size."""
    ends = [0]
    for shape, dtype in specs:
        size = shape.numel() * dtype.itemsize
        ends.append(ends[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return ends


def taken_apart(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    """The structure of ``value`` as a pickle, and its tensors."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    return stream.getvalue(), pickler.tensors


def put_together(structure: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    """What was taken apart."""
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
