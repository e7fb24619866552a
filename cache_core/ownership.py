"""Sessions belong to the job that opened them, not to the transformer.

Several may be open on one transformer at the same time: those of two threads, or of an image and the preview generated
in its step callback. Each call of the transformer goes to the session of the job that makes it, or to none: then it is
computed without the cache and not reported.

Open sessions are kept in a context variable, so threads, tasks and greenlets have their own; ``asyncio.to_thread``
inherits its caller's. Within a context, the pipeline call on the stack distinguishes a job's calls from others
(:mod:`cache_core.callers`): a session is bound to the pipeline call, or the hand-written loop, that made its first
call.
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
        """Whether a call belongs to this job. The first call decides which job that is."""
        if self.bound is None and self._may_bind(now):
            self.bound = now
        if self.bound is None or not now.came_like(self.bound, self._opener):
            return False
        if now.run is None:
            self.bound = now
        return True

    def passes_to(self, now: Caller) -> bool:
        """Whether this is the first call of the job's next image: the previous pipeline call has ended."""
        if self.bound is None or self.bound.run is None or not self._may_bind(now) or is_running(self.bound.run):
            return False
        self.session.close()  # nothing of the previous image may be reused
        self.bound = now
        return True

    def close(self) -> None:
        """Drop all references, because copies of the context, and a frame with its locals, may outlive this."""
        self.session.close()
        self.closed = True
        self.transformer = self.session = self.pipe = self.bound = None

    def _may_bind(self, now: Caller) -> bool:
        return self.pipe is None or now.pipe is self.pipe


class Routing(Protocol):
    """What handles a call of the transformer and its blocks: a session, or several jobs' joined call."""

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
    """Keep a session open in this context.

    Args:
        pipe: the pipeline whose calls it takes; None = the first caller of the transformer.

    Raises:
        RuntimeError: another session is open and has taken no call yet, so the next call could belong to either.
    """
    other = _innermost(transformer)
    if other is not None and other.bound is None and None in (other.pipe, pipe):
        raise RuntimeError(
            "a cache session is already open on this transformer and has computed nothing yet, so the next call could "
            "belong to either. Close one first; once a session's job has started, others may open and close theirs"
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
    """The most recently opened session on a transformer in this context, whichever calls it takes."""
    found = _innermost(transformer)
    return None if found is None else found.session


@contextmanager
def call_for(transformer: nn.Module, routing: Routing) -> Iterator[None]:
    """Route the next call of a transformer in this context through ``routing``, whoever makes it."""
    token = _NEXT.set((transformer, routing))
    try:
        yield
    finally:
        _NEXT.reset(token)


@contextmanager
def call_of(transformer: nn.Module) -> Iterator[Routing | None]:
    """While one call of a transformer runs: what handles it; None = it is computed without the cache."""
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
    """What handles the running call of a transformer; None = nothing, or no call is running."""
    return next((session for module, session in reversed(_RUNNING.get()) if module is transformer), None)


def _taken(transformer: nn.Module) -> Routing | None:
    """The routing that was set for the next call, which is this one."""
    said = _NEXT.get()
    if said is None or said[0] is not transformer:
        return None
    _NEXT.set(None)
    return said[1]


def _owner(transformer: nn.Module, now: Caller) -> _Open | None:
    """The session that the starting call belongs to; it is marked busy."""
    mine = [own for own in reversed(_still_open()) if own.transformer is transformer]
    with _LOCK:  # a context may have been copied to other threads
        for own in mine:
            # A call inside a call, or at the same time in another thread, is not a step of the same image.
            if not own.busy and not own.closed and (own.takes(now) or (own is mine[0] and own.passes_to(now))):
                own.busy = True
                return own
    if mine and not mine[0].passed:
        mine[0].passed = True
        _logger.info(
            "%s was called by code other than the job whose cache session is open: such calls are computed, not cached",
            type(transformer).__name__,
        )
    return None


def _still_open() -> tuple[_Open, ...]:
    return tuple(own for own in _OPEN.get() if not own.closed)


def _innermost(transformer: nn.Module) -> _Open | None:
    return next((own for own in reversed(_still_open()) if own.transformer is transformer), None)
