"""Jobs of a gang: submitted by any thread, started and answered by the gang's own."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Literal

from raycache.gang.states import HandleState
from raycache.protocol.job import Job, JobOutput, Progress
from raycache.protocol.job_errors import DeadlineExceeded, JobCancelled

__all__ = ["JobHandle", "JobQueue"]


class JobHandle:
    """A submitted job. ``future`` ends with a :class:`JobOutput` or one of the exceptions of ``raycache.protocol.job``.

    Attributes:
        arrived, begun: ``time.monotonic()``; ``begun`` is None before ranks get it.
        deadline: ``time.monotonic()`` after which the job is over, or None.
        caller, weight: whose it is, and what that caller weighs beside others, for fair shares.
        reason: why it shall be aborted, or None.
        faults: how often ranks broke under it, while it was run with others and while it was run alone.
    """

    def __init__(
        self,
        job: Job,
        deadline: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        caller: str = "",
        weight: float = 1.0,
    ) -> None:
        self.job, self.deadline, self._on_progress = job, deadline, on_progress
        self.caller, self.weight = caller, weight
        self.arrived = time.monotonic()
        self.begun: float | None = None
        self.faults = Counter[Literal["shared", "alone"]]()
        self.future: Future[JobOutput] = Future()
        self.reason: str | None = None
        self._state, self._told = HandleState.QUEUED, 0
        self._lock = threading.Lock()

    def abort(self, reason: str) -> None:
        """Thread-safe. A queued job ends at once, one that ranks have with the next tick, on all of them."""
        with self._lock:
            self.reason = self.reason or reason
            if self._state is not HandleState.RUNNING:
                self.end(JobCancelled(self.reason))

    @property
    def running(self) -> bool:
        """Whether ranks have it."""
        return self._state is HandleState.RUNNING and not self.future.done()

    def start(self) -> bool:
        """Ranks get it; False if it is over already."""
        with self._lock:
            self._state, self.begun = HandleState.RUNNING, time.monotonic()
            return not self.future.done()

    def pause(self) -> None:
        """It met a fault and waits for new ranks: an abort ends it at once again."""
        with self._lock:
            self._state = HandleState.WAITING_FOR_RANKS

    def late(self, now: float) -> bool:
        """Whether its deadline has passed at ``now``, in seconds of ``time.monotonic()``."""
        return self.deadline is not None and now >= self.deadline

    def unwanted(self) -> bool:
        """Whether it must stop: aborted, or late."""
        return self.reason is not None or self.late(time.monotonic())

    def tell(self, events: list[Progress]) -> None:
        """Pass progress on. A job run again does not tell its first steps twice."""
        for event in events:
            if self._on_progress is not None and event.step > self._told:
                self._told = event.step
                self._on_progress(event)

    def end(self, outcome: JobOutput | Exception) -> None:
        """The answer; only the first counts."""
        with suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def end_if_unwanted(self) -> Exception | None:
        """End it if nobody wants its image any more; why, if so."""
        outcome: Exception | None = None
        if self.reason is not None:
            outcome = JobCancelled(self.reason)
        elif self.late(time.monotonic()):
            outcome = DeadlineExceeded(f"the deadline of job {self.job.id} passed")
        if outcome is not None:
            self.end(outcome)
        return outcome


class JobQueue:
    """All jobs that are not over, in order of arrival. Bounded by admission, not here."""

    def __init__(self) -> None:
        self._handles: list[JobHandle] = []
        self._changed = threading.Condition()
        self._stopped = self._closed = False

    def __len__(self) -> int:
        """How many wait for ranks."""
        return len(self.waiting())

    @property
    def stopped(self) -> bool:
        """Whether no more is to be done than what is here."""
        return self._stopped

    def put(self, handle: JobHandle) -> bool:
        """A job arrived; False once closed.

        Raises:
            ValueError: another of its name is not over.
        """
        with self._changed:
            if self._closed:
                return False
            if any(other.job.id == handle.job.id for other in self._handles):
                raise ValueError(f"job {handle.job.id!r} is here already: each needs a name of its own")
            self._handles.append(handle)
            self._changed.notify_all()
        # However it ends, by another thread too, the gang's thread need not look for it.
        handle.future.add_done_callback(lambda _: self._gone(handle))
        return True

    def open(self) -> list[JobHandle]:
        """Those that are not over."""
        with self._changed:
            return list(self._handles)

    def waiting(self) -> list[JobHandle]:
        """Those of them that no rank has."""
        return [handle for handle in self.open() if not handle.running]

    def wait(self, timeout_s: float) -> None:
        """Return when there is a job, or it was stopped, or after ``timeout_s`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._handles or self._stopped, timeout_s)

    def stop(self) -> None:
        """What is here is the last."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> list[JobHandle]:
        """Take nothing more; whoever is not over is handed back."""
        with self._changed:
            self._closed = True
        return self.open()

    def drop_late(self) -> None:
        """Jobs that wait, and whose deadline passed, end now and not when their turn comes."""
        now = time.monotonic()
        for handle in self.waiting():
            if handle.late(now):
                handle.end_if_unwanted()

    def _gone(self, handle: JobHandle) -> None:
        with self._changed:
            if handle in self._handles:
                self._handles.remove(handle)
