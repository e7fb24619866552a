"""Seconds, memory, and what happens to an attempt that fails."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.recorder import Recorder

__all__ = ["attempt", "peak_gib", "release", "seconds_of", "synchronize"]

#: In what is told of a rank that had too little memory.
_OUT_OF_MEMORY = "torch.OutOfMemoryError"


def synchronize(device: str) -> None:
    """Wait for what the device was told to do; a CPU has done it."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: str, call: Callable[[], object]) -> float:
    """Wall time of one call, its work on the device included and nothing of what came before."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def release(device: str) -> None:
    """Give back what nobody holds any more, and begin to look for the peak anew."""
    gc.collect()
    # Whoever only starts ranks has asked nothing of CUDA, and should not begin here: it would take a context's memory.
    if device == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """The most that tensors took since :func:`release`, GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


@contextmanager
def attempt(recorder: Recorder, what: str, device: str) -> Iterator[None]:
    """Measure something; if it fails, write down why, and go on with what comes next.

    Too little memory is a fact about the device, anything else is an error. After one that leaves CUDA unusable the
    next attempt ends the section.
    """
    # Not behind the attempt: while its error is handled, the error's frames hold what the attempt held.
    release(device)
    try:
        yield
    except Exception as error:
        traceback.print_exc()  # whole, into the section's log
        if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY in str(error):
            recorder.skip(what, f"out of memory: {_told(error)}")
        else:
            recorder.fail(what, f"{type(error).__name__}: {_told(error)}")
        traceback.clear_frames(error.__traceback__)


def _told(error: BaseException) -> str:
    """One line of its message: the last if a rank's traceback is in it, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "no message"
    return lines[-1 if "Traceback" in str(error) else 0][:300]
