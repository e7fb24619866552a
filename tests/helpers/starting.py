"""Starts what many tests share, with one retry; if that fails too, tests that need it fail immediately with the reason.

pytest keeps the error of a failed fixture and raises it for every test that uses it, without another start; other tests
continue. So a start must end by itself, within the time limit of one test: all waits here are bounded.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

__all__ = ["StartError", "started"]

_Thing = TypeVar("_Thing")
_ATTEMPTS = 2


class StartError(Exception):
    """Something that tests share did not start in any attempt; gives the reason for each."""


@contextmanager
def started(what: str, start: Callable[[], _Thing], stop: Callable[[], object]) -> Iterator[_Thing]:
    """The result of ``start()``, until the end of the block; ``stop()`` clears up, also after a failed start.

    Raises:
        StartError: the start failed twice. An error inside the block is raised unchanged.
    """
    reasons: list[str] = []
    while True:
        began = time.monotonic()
        try:
            thing = start()
            break
        except pytest.skip.Exception:
            raise
        except (Exception, pytest.fail.Exception) as error:
            reason = f"{type(error).__name__} after {time.monotonic() - began:.0f} s: {error}"
            reasons.append(reason)
            _clear_up(what, stop)
            if len(reasons) == _ATTEMPTS:
                tries = "; then ".join(reasons)
                raise StartError(f"{what} did not start, tried {_ATTEMPTS} times: {tries}") from error
            warnings.warn(f"{what} did not start, once more: {reason}", stacklevel=3)
    try:
        yield thing
    finally:
        stop()


def _clear_up(what: str, stop: Callable[[], object]) -> None:
    """Stop what may be half started; a second failure adds no information."""
    try:
        stop()
    except Exception as error:
        warnings.warn(f"{what} could not be cleared up after a failed start: {error!r}", stacklevel=3)
