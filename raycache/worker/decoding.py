"""Decoding on one rank: inside the tick that requests it, or in parallel with the calls of later ticks.

On a GPU a separate thread decodes the images of finished jobs, on a separate stream: idle units of the device do it
while the transformer's next call runs. What one tick starts is collected at the end of the next one, on all ranks
alike, so a report never depends on which rank was faster. Tiles of a large image are sent there, too, to the rank that
puts them together: in the thread that calls all other collectives, in the same order on all ranks.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from raycache.worker.active_job import ActiveJob, RankContext
from raycache.worker.exchange import to_owners
from raycache.worker.job_view import one_after_the_other
from raycache.worker.tiles import TiledRows

__all__ = ["Decoder", "Decoding"]


@dataclass(frozen=True)
class Decoding:
    """The rows of a job that this rank decodes; may be empty.

    Attributes:
        owners: for each row of the job, the rank that decodes it or puts its tiles together.
        rows: this rank's rows of the job, counted from 0.
        future: the VAE's output for them, or this rank's tiles; and the seconds that it took.
    """

    name: str
    active: ActiveJob
    owners: Sequence[int]
    rows: Sequence[int]
    future: Future[tuple[Any, float]]


class Decoder:
    """Used by the thread that the rank's ticks run on.

    Args:
        context: the rank's; with ``overlaps``, decoding runs in parallel with the tick's thread.
        claim: prepares a thread for the device.
        group: the ranks that decode together; None = this process alone.
    """

    def __init__(
        self, context: RankContext, claim: Callable[[], None] = lambda: None, group: dist.ProcessGroup | None = None
    ) -> None:
        self._context, self._group = context, group
        self._pool = ThreadPoolExecutor(1, "decode", claim) if context.overlaps else None
        self._stream = torch.cuda.Stream() if context.overlaps and context.device.type == "cuda" else None
        #: Started, but not taken yet.
        self.begun: list[Decoding] = []

    def begin(self, active: ActiveJob, owners: Sequence[int]) -> None:
        """Start decoding this rank's rows of a finished job; ``owners``: the rank of each row."""
        rows = [row for row, owner in enumerate(owners) if owner == self._context.rank]
        if self._pool is None:
            future = Future[tuple[Any, float]]()
            try:
                future.set_result(self._decoded(active, rows))
            except Exception as error:
                future.set_exception(error)
        else:
            ready = torch.cuda.current_stream().record_event() if self._stream is not None else None
            future = self._pool.submit(self._beside, active, rows, ready)
        self.begun.append(Decoding(active.job.id, active, owners, rows, future))

    def result(self, decoding: Decoding) -> tuple[dict[int, np.ndarray], float]:
        """Images by row, and the seconds they took; waits for them, and for the other ranks if it is tiled.

        Raises:
            Exception: what decoding raised.
        """
        active, rows = decoding.active, decoding.rows
        try:
            decoded, seconds = self._from_all(decoding) if active.tiled else self._waited(decoding)
            began = time.monotonic()
            return active.images(rows, decoded), seconds + time.monotonic() - began
        except Exception:
            active.drop()  # a suspended pipeline is never garbage-collected
            raise

    def _waited(self, decoding: Decoding) -> tuple[Any, float]:
        """This rank's own result."""
        try:
            return decoding.future.result()
        except torch.OutOfMemoryError:
            if self._pool is None:
                raise
            # It ran out of memory in parallel with a call; now no call runs.
            return self._decoded(decoding.active, decoding.rows)

    def _from_all(self, decoding: Decoding) -> tuple[Any, float]:
        """Images put together from the tiles of all ranks; None for a rank without rows."""
        made: Sequence[Sequence[torch.Tensor]] | Exception
        tiles: TiledRows | None = None
        seconds = 0.0
        try:
            got, seconds = self._waited(decoding)
            tiles, made = got, got.made
        except Exception as error:
            made = error  # sent to the other ranks, which wait
        began = time.monotonic()
        by_row = to_owners(made, decoding.owners, self._group, self._context.device)
        parts = [tiles.blended(row, each) for row, each in by_row.items()] if tiles is not None else []
        return one_after_the_other(parts) if parts else None, seconds + self._context.now() - began

    def take(self) -> list[Decoding]:
        """Return what was started, and clear the list."""
        begun, self.begun = self.begun, []
        return begun

    def _beside(self, active: ActiveJob, rows: Sequence[int], ready: torch.cuda.Event | None) -> tuple[Any, float]:
        # The latents were made on the other thread's stream, and stay alive until the images are collected.
        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            try:
                return self._decoded(active, rows)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they hold activations, and a call needs the memory
                raise

    def _decoded(self, active: ActiveJob, rows: Sequence[int]) -> tuple[Any, float]:
        began = time.monotonic()
        decoded = active.decoded(rows) if rows or active.tiled else None
        return decoded, self._context.now() - began
