"""Decoding on one rank: inside the tick that says so, or beside the calls of the ticks that follow.

On a GPU the images of finished jobs are decoded by a thread of its own, on a stream of its own: the device's free
units do it while the transformer's next call runs. What a tick begins is collected at the end of the next one, by all
ranks alike, so a report never depends on which rank was quicker.
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

from raycache.worker.active_job import ActiveJob, RankContext

__all__ = ["Decoder", "Decoding"]


@dataclass(frozen=True)
class Decoding:
    """Rows of a job that this rank decodes, perhaps none.

    Attributes:
        rows: of the job, from 0.
        future: what the VAE gives for them, and the seconds that it took.
    """

    name: str
    active: ActiveJob
    rows: Sequence[int]
    future: Future[tuple[Any, float]]


class Decoder:
    """Used by the thread that the rank's ticks run on.

    Args:
        context: of the rank; where it says ``overlaps``, decoding goes on beside what the tick's thread does.
        claim: makes a thread ready for the device.
    """

    def __init__(self, context: RankContext, claim: Callable[[], None] = lambda: None) -> None:
        self._context = context
        self._pool = ThreadPoolExecutor(1, "decode", claim) if context.overlaps else None
        self._stream = torch.cuda.Stream() if context.overlaps and context.device.type == "cuda" else None
        #: What was begun and not taken yet.
        self.begun: list[Decoding] = []

    def begin(self, active: ActiveJob, rows: Sequence[int]) -> None:
        """Decode these rows of a job that is done."""
        if self._pool is None:
            future = Future[tuple[Any, float]]()
            try:
                future.set_result(self._decoded(active, rows))
            except Exception as error:
                future.set_exception(error)
        else:
            ready = torch.cuda.current_stream().record_event() if self._stream is not None else None
            future = self._pool.submit(self._beside, active, rows, ready)
        self.begun.append(Decoding(active.job.id, active, rows, future))

    def result(self, decoding: Decoding) -> tuple[dict[int, np.ndarray], float]:
        """Images by row, and the seconds they took; waits for them.

        Raises:
            Exception: what decoding raised.
        """
        active, rows = decoding.active, decoding.rows
        try:
            try:
                decoded, seconds = decoding.future.result()
            except torch.OutOfMemoryError:
                if self._pool is None:
                    raise
                # Beside a call there was no room for it; now no call runs.
                decoded, seconds = self._decoded(active, rows)
            began = time.monotonic()
            return active.images(rows, decoded), seconds + time.monotonic() - began
        except Exception:
            active.drop()  # a suspended pipeline is never collected by itself
            raise

    def take(self) -> list[Decoding]:
        """What was begun, which is then forgotten."""
        begun, self.begun = self.begun, []
        return begun

    def _beside(self, active: ActiveJob, rows: Sequence[int], ready: torch.cuda.Event | None) -> tuple[Any, float]:
        # The latents were made on the other thread's stream, and are kept until the images are collected.
        with torch.no_grad(), torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
            try:
                return self._decoded(active, rows)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # which hold activations, while a call needs the memory
                raise

    def _decoded(self, active: ActiveJob, rows: Sequence[int]) -> tuple[Any, float]:
        began = time.monotonic()
        decoded = active.decoded(rows) if rows else None
        return decoded, self._context.now() - began
