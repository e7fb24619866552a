"""Sessions belong to the job that opened them, not to the transformer.

Several may be open on one transformer at once: of two threads, of an image and of the preview generated in its step
callback. Each call of the transformer goes to the session of the job that makes it, or to none: then it is computed as
if there were no cache, and counted nowhere.

Open sessions are kept in a context variable, so threads, tasks and greenlets have their own; ``asyncio.to_thread``
takes its caller's along. Within a context, the pipeline call on the stack tells a job's calls from others
(:mod:`cache_core.callers`): a session is bound to the pipeline call, or the loop of one's own, that its first call came
from.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import nn

from cache_core.blocks import BlockCall
from cache_core.callers import Caller, caller, is_running, place
from cache_core.calls import CallInputs
from cache_core.session import Session

__all__ = ["Routing", "call_for", "call_of", "innermost", "opened", "running"]

_logger = logging.getLogger(__name__)


class _Open:
    """An open session and whose calls it takes."""

    transformer: Any
    session: Any

    def __init__(self, transformer: nn.Module, session: Session, pipe: Any) -> None:
        self.transformer, self.session, self.pipe = transformer, session, pipe
        self.bound: Caller | None = None
        self._opener = place()
        self.closed = self.busy = self.passed = False

    def takes(self, now: Caller) -> bool:
        """Whether a call is this job's. The first that comes decides who the job is."""
        if self.bound is None and self._may_bind(now):
            self.bound = now
        if self.bound is None or not now.came_like(self.bound, self._opener):
            return False
        if now.run is None:
            self.bound = now
        return True

    def passes_to(self, now: Caller) -> bool:
        """Whether this is the first call of the job's next image: the pipeline call before has ended."""
        if self.bound is None or self.bound.run is None or not self._may_bind(now) or is_running(self.bound.run):
            return False
        self.session.close()  # nothing of the image before may be reused
        self.bound = now
        return True

    def close(self) -> None:
        """Let go of everything: copies of the context, and a frame with its locals, may live on."""
        self.session.close()
        self.closed = True
        self.transformer = self.session = self.pipe = self.bound = None

    def _may_bind(self, now: Caller) -> bool:
        return self.pipe is None or now.pipe is self.pipe


class Routing(Protocol):
    """What a call of the transformer and its blocks are routed through: a session, or several jobs' joined call."""

    def begin_step(self, context: str, inputs: CallInputs) -> None: ...

    def run(self, call: BlockCall) -> Any: ...

    def end_step(self) -> None: ...

    def fail_step(self) -> None: ...


_OPEN: ContextVar[tuple[_Open, ...]] = ContextVar("cache_core_open", default=())
_RUNNING: ContextVar[tuple[tuple[nn.Module, Routing | None], ...]] = ContextVar("cache_core_running", default=())
_NEXT: ContextVar[tuple[nn.Module, Routing] | None] = ContextVar("cache_core_next", default=None)
_LOCK = threading.Lock()


@contextmanager
def opened(transformer: nn.Module, session: Session, pipe: Any = None) -> Iterator[None]:
    """Have a session open in this context.

    Args:
        pipe: the pipeline whose calls it takes; None = whoever calls the transformer first.

    Raises:
        RuntimeError: another one is, which has taken no call yet: whose the next call is could not be told.
    """
    other = _innermost(transformer)
    if other is not None and other.bound is None and None in (other.pipe, pipe):
        raise RuntimeError(
            "a cache session is open on this transformer already, and nothing was drawn in it yet: whose the next call "
            "is could not be told. Close one first; while the job of one draws, others may open and close theirs"
        )
    own = _Open(transformer, session, pipe)
    _OPEN.set((*_still_open(), own))
    try:
        yield
    finally:
        with _LOCK:
            own.close()
        _OPEN.set(_still_open())


def innermost(transformer: nn.Module) -> Session | None:
    """The session opened last on a transformer in this context, whoever's call it takes next."""
    found = _innermost(transformer)
    return None if found is None else found.session


@contextmanager
def call_for(transformer: nn.Module, routing: Routing) -> Iterator[None]:
    """Have the next call of a transformer in this context routed through ``routing``, whoever makes it."""
    token = _NEXT.set((transformer, routing))
    try:
        yield
    finally:
        _NEXT.reset(token)


@contextmanager
def call_of(transformer: nn.Module) -> Iterator[Routing | None]:
    """While one call of a transformer runs: what it is routed through; None = it is computed, without the cache."""
    own, session = None, _taken(transformer)
    if session is None and (own := _owner(transformer, caller())) is not None:
        session = own.session
    token = _RUNNING.set((*_RUNNING.get(), (transformer, session)))
    try:
        yield session
    finally:
        _RUNNING.reset(token)
        if own is not None:
            own.busy = False


def running(transformer: nn.Module) -> Routing | None:
    """What the running call of a transformer is routed through; None = nothing, or no call is running."""
    return next((session for module, session in reversed(_RUNNING.get()) if module is transformer), None)


def _taken(transformer: nn.Module) -> Routing | None:
    """What was said of the next call, which this one is."""
    said = _NEXT.get()
    if said is None or said[0] is not transformer:
        return None
    _NEXT.set(None)
    return said[1]


def _owner(transformer: nn.Module, now: Caller) -> _Open | None:
    """Whose the call is that begins now; it is busy from here on."""
    mine = [own for own in reversed(_still_open()) if own.transformer is transformer]
    with _LOCK:  # a context may have been copied to other threads
        for own in mine:
            # A call inside a call, or beside it in another thread, is no step of the same image.
            if not own.busy and not own.closed and (own.takes(now) or (own is mine[0] and own.passes_to(now))):
                own.busy = True
                return own
    if mine and not mine[0].passed:
        mine[0].passed = True
        _logger.info(
            "%s was called by another than the job whose cache session is open: such calls are computed, not cached",
            type(transformer).__name__,
        )
    return None


def _still_open() -> tuple[_Open, ...]:
    return tuple(own for own in _OPEN.get() if not own.closed)


def _innermost(transformer: nn.Module) -> _Open | None:
    return next((own for own in reversed(_still_open()) if own.transformer is transformer), None)
