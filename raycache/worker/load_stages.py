"""Seconds of a rank's start, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["LoadStages", "compile_seconds", "tell_compiling"]

#: What torch counts a whole compilation of one piece of code as, with all that is in it.
_WHOLE = "_compile.compile_inner"


class LoadStages:
    """One after the other.

    Attributes:
        seconds: by stage, of those that ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def ended(self, stage: str) -> None:
        """``stage`` is over, and the next begins."""
        now = time.monotonic()
        self.seconds[stage], self._began = now - self._began, now


def compile_seconds() -> float:
    """That torch spent compiling in this process."""
    from torch._dynamo.utils import compile_times

    told: Any = compile_times(repr="csv", aggregate=True)  # names, and as many sums as text
    return sum(float(seconds) for name, seconds in zip(*told, strict=True) if name == _WHOLE)


def tell_compiling(tell: Callable[[bool], None]) -> None:
    """Have ``tell`` called whenever torch begins (True) or ends (False) to compile something in this process."""
    from torch._dynamo.callback import on_compile_end, on_compile_start

    on_compile_start(lambda _: tell(True))
    on_compile_end(lambda _: tell(False))
