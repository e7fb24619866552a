"""Measures seconds and memory, and records attempts that fail."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.recorder import Recorder

__all__ = ["attempt", "peak_gib", "release", "seconds_of", "synchronize"]

#: Part of the message of a rank that ran out of memory.
_OUT_OF_MEMORY = "torch.OutOfMemoryError"


def synchronize(device: str) -> None:
    """Wait for the device's queued work; a CPU has none."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(device: str, call: Callable[[], object]) -> float:
    """Wall time of one call, including its work on the device but no earlier work."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def release(device: str) -> None:
    """Free unused memory, and reset the peak."""
    gc.collect()
    # A process that only starts ranks has not used CUDA, and should not start here: a context takes memory.
    if device == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float | None:
    """The peak memory of tensors since :func:`release`, GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


@contextmanager
def attempt(recorder: Recorder, what: str, device: str) -> Iterator[None]:
    """Measure something; if it fails, record why, and continue.

    Too little memory counts as skipped, anything else as an error. After an error that leaves CUDA unusable the next
    attempt ends the section.
    """
    # Not after the attempt: while its error is handled, the error's frames hold the attempt's memory.
    release(device)
    try:
        yield
    except Exception as error:
        traceback.print_exc()  # in full, to the section's log
        if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY in str(error):
            recorder.skip(what, f"out of memory: {_told(error)}")
        else:
            recorder.fail(what, f"{type(error).__name__}: {_told(error)}")
        traceback.clear_frames(error.__traceback__)


def _told(error: BaseException) -> str:
    """One line of its message: the last if it contains a rank's traceback, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "no message"
    return lines[-1 if "Traceback" in str(error) else 0][:300]
