"""How the ranks of one context-parallel group make the same decision.

One all-reduce (SUM, float32) per decision, over the context-parallel group only, of a vector of fixed length
``width * images + 2``::

    [ sum|cur - ref| per image | sum|ref| per image | abort flag | checksum ]

for a method with two sums per image; one that fits weights has more. The method fixes the width, and images that
compare nothing contribute zeros, so the length never depends on state. The checksum covers (branch, step, site, all
decisions so far): if the sum is not world size times a rank's own, the ranks disagree and this decision raises, instead
of a deadlock some collectives later.
"""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

__all__ = ["Consensus", "GroupConsensus", "RanksParted", "Sums", "Totals", "checksum16"]

#: One image's local sums, float32 tensors of shape []: ``(sum|current - reference|, sum|reference|)``, or its own.
Sums = tuple[torch.Tensor, ...]
#: These sums over all ranks.
Totals = tuple[float, ...]


class RanksParted(RuntimeError):
    """The ranks of a group are not at the same decision. The job is lost and the group must be rebuilt."""


def checksum16(*parts: object) -> int:
    """A 16-bit checksum: its sum over up to 256 ranks is still exact in float32."""
    return zlib.crc32(repr(parts).encode()) & 0xFFFF


class Consensus:
    """A single process: nothing is reduced, at no cost. Also the base of :class:`GroupConsensus`."""

    collectives = 0
    wait_s = 0.0

    def agree(
        self, sums: Sequence[Sums | None], abort: bool, checksum: int, device: torch.device, width: int = 2
    ) -> tuple[list[Totals | None], bool]:
        """The sums over all ranks of every image that is compared, and whether any rank wants to abort.

        Args:
            sums: for each image of the batch its local sums, or None if it is not compared.
            abort: whether this rank wants to abort.
            checksum: 16 bits over this rank's position and history.
            device: the device of the activations.
            width: sums per image; fixed by the method, whichever images are compared.

        Raises:
            RanksParted: another rank sent a different checksum.
        """
        asked = [own for own in sums if own is not None]
        values = iter(torch.stack([s for own in asked for s in own]).tolist() if asked else ())
        return [None if own is None else tuple(itertools.islice(values, width)) for own in sums], abort


class GroupConsensus(Consensus):
    """All ranks of ``group`` decide together."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.world_size = dist.get_world_size(group)
        self.collectives = 0
        self.wait_s = 0.0

    def agree(
        self, sums: Sequence[Sums | None], abort: bool, checksum: int, device: torch.device, width: int = 2
    ) -> tuple[list[Totals | None], bool]:
        images = len(sums)
        # Filled on the device: copying a vector from the host would make the host wait here as well as below. The dtype
        # must not depend on torch's default.
        vector = torch.zeros(width * images + 2, dtype=torch.float32, device=device)
        vector[-2].fill_(float(abort))
        vector[-1].fill_(float(checksum))
        for k, own in enumerate(sums):
            if own is not None:
                vector[k : width * images : images] = torch.stack(own)
        began = time.perf_counter()
        self._all_reduce(vector)
        self.collectives += 1
        *values, wishes, total = vector.tolist()  # on a GPU the host waits here
        self.wait_s += time.perf_counter() - began
        if total != self.world_size * checksum:
            raise RanksParted(
                f"the {self.world_size} ranks of this group are not at the same decision: their checksums sum to "
                f"{total:.0f}, not {self.world_size} x {checksum}, so another rank has a different history. "
                "The process group must be rebuilt"
            )
        return [None if own is None else tuple(values[k::images]) for k, own in enumerate(sums)], wishes > 0

    def _all_reduce(self, vector: torch.Tensor) -> None:
        dist.all_reduce(vector, op=dist.ReduceOp.SUM, group=self.group)
