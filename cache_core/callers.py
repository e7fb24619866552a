"""Who calls a transformer: the nearest pipeline call on the stack, and the frames in between.

The code that opened a session may, in the same thread, run other code that calls the transformer: a preview by a second
pipeline in a step callback, a safety re-run, the same pipeline again. Those calls have the same context, the same
module and often the same shapes. Only the stack differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from diffusers import DiffusionPipeline, ModularPipeline
from torch import nn

__all__ = ["AlsoPipeline", "Caller", "Place", "caller", "is_running", "place"]

#: A pipeline's own ``self.transformer(...)``: it calls the module directly, with no function in between.
_DIRECT = nn.Module.__call__.__code__
#: What stands between a call and the module that is called: its wrappers and hooks.
_BETWEEN = {"accelerate", "cache_core", "contextlib", "diffusers", "functools", "para_attn", "torch"}


class AlsoPipeline:
    """Mixin for what is called like a pipeline, although diffusers does not know its class."""


class Place(NamedTuple):
    """A running function, identified without keeping its frame, and therefore its tensors, alive."""

    frame: int
    code: CodeType


class Caller(NamedTuple):
    """What called a transformer.

    Attributes:
        pipe: the nearest pipeline; None outside any.
        run: the frame of its ``__call__``. A different frame generates a different image.
        door: what that frame called: the module itself, or a function (a step callback, a helper) that called it.
        places: outside any pipeline, the functions on the stack, starting with the one that called the transformer.
    """

    pipe: Any
    run: FrameType | None
    door: CodeType | None
    places: tuple[Place, ...]

    def came_like(self, first: Caller, opener: Place | None) -> bool:
        """Whether the same code calls again, and not other code that it merely called.

        A pipeline calls its transformer itself or through one helper of its own (LTX-2's ``denoise``). A hand-written
        loop may call through any function that was on the stack of its first call and is still running; calls from
        deeper functions are not the loop's. All that ``opener`` itself calls is.
        """
        if self.run is not None or first.run is not None:
            return self.run is first.run and self.door in (first.door, None, _DIRECT)
        return first.places[:1] == (opener,) or not set(first.places[:1]) & set(self.places[1:])


def caller() -> Caller:
    """Who called the function that calls this."""
    door: FrameType | None = None
    for frame in _outwards(sys._getframe(1)):
        pipe = _pipeline_of(frame)
        if pipe is not None:
            return Caller(pipe, frame, door.f_code if door is not None else None, ())
        door = frame
    return Caller(None, None, None, tuple(_places(sys._getframe(1))))


def place() -> Place | None:
    """The function outside this package that called the function that calls this."""
    return next(_places(sys._getframe(1)), None)


def is_running(run: FrameType) -> bool:
    """Whether a frame is on the stack of any thread."""
    return any(frame is run for innermost in sys._current_frames().values() for frame in _outwards(innermost))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _places(innermost: FrameType) -> Iterator[Place]:
    for frame in _outwards(innermost):
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _BETWEEN:
            yield Place(id(frame), frame.f_code)


def _pipeline_of(frame: FrameType) -> Any:
    """The pipeline whose ``__call__`` a frame runs; None for any other frame."""
    code = frame.f_code
    if code.co_name != "__call__" or not code.co_argcount:
        return None
    own = frame.f_locals.get(code.co_varnames[0])
    return own if isinstance(own, DiffusionPipeline | ModularPipeline | AlsoPipeline) else None
